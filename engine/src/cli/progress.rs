//! A progress bar for statements that take a while, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};
use mergeql::MergeContext;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A bar that shows itself after half a second.
pub struct Bar(Arc<AtomicBool>);

impl Bar {
    /// Takes the bar off the screen.
    pub fn done(&self) {
        if !self.0.swap(true, Ordering::SeqCst) && std::io::stderr().is_terminal() {
            // The watcher clears its line when it next wakes; what is printed now must not share it.
            eprint!("\r\x1b[2K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.done();
    }
}

/// Watches the running query of a session.
pub fn watch(context: MergeContext) -> Bar {
    let done = Arc::new(AtomicBool::new(!std::io::stderr().is_terminal()));
    let stop = done.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut bar: Option<(bool, ProgressBar)> = None;
        while !stop.load(Ordering::SeqCst) {
            let models = context.merging();
            let (rows, total) = match models {
                Some([done, total, ..]) => (done as usize, Some(total as usize)),
                None => context.progress(),
            };
            // A statement that merges models plans for a while before it counts bytes.
            if let Some((_, old)) = bar.take_if(|(of_models, _)| *of_models != models.is_some()) {
                old.finish_and_clear();
            }
            let (_, bar) = bar.get_or_insert_with(|| {
                if models.is_some() {
                    let bytes = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {msg}{bytes_per_sec}, {eta} left");
                    let bar = ProgressBar::new(total.unwrap_or(0) as u64);
                    return (true, bytes.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)));
                }
                let known = ProgressStyle::with_template("{bar:30} {human_pos} of {human_len} rows, {per_sec}, {eta} left");
                let unknown = ProgressStyle::with_template("{spinner} {human_pos} rows, {per_sec}, {elapsed}");
                let bar = total.map_or_else(ProgressBar::new_spinner, |n| ProgressBar::new(n as u64));
                let styled = match if total.is_some() { known } else { unknown } {
                    Ok(style) => bar.with_style(style),
                    Err(_) => bar,
                };
                (false, styled)
            });
            if let Some(total) = total.filter(|_| models.is_some()) {
                bar.set_length(total as u64);
            }
            if let Some([.., begun, tensors]) = models {
                bar.set_message(format!("{begun} of {tensors} tensors, "));
            }
            bar.set_position(rows as u64);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Some((_, bar)) = bar {
            bar.finish_and_clear();
        }
    });
    Bar(done)
}
