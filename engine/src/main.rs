//! The `mergeql` command line.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(mergeql::STACK).build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error[io]: the runtime does not start: {e}");
            return ExitCode::from(1);
        }
    };
    let spills = mergeql::SpillFolder::claim();
    // The runtime's threads may be inside a read that Ctrl-C gave up on: they are not waited for.
    let code = runtime.block_on(cli::run());
    runtime.shutdown_background();
    if let Some(spills) = spills {
        spills.remove();
    }
    code
}
