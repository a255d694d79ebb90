//! Any function of the core, given any values: an answer or an error, and a state that it gives is one that is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mergeql_udfs::codec::{self, Reader};
use mergeql_udfs::{Value, catalog, functions};
use std::sync::LazyLock;

static FUNCTIONS: LazyLock<Vec<functions::Function>> = LazyLock::new(functions::all);

fuzz_target!(|input: &[u8]| {
    let [which, rest @ ..] = input else { return };
    let function = &FUNCTIONS[usize::from(*which) % FUNCTIONS.len()];
    let mut arguments = Vec::new();
    let mut reader = Reader::new(rest);
    while arguments.len() < 5
        && let Ok(value) = reader.value()
    {
        arguments.push(match value {
            // With the right checksum, so that what a state holds is reached.
            Value::Bytes(bytes) if bytes.first().is_some_and(|id| *id > 0) => {
                Value::Bytes(codec::seal(bytes[0], 0, &bytes[1..]).into())
            }
            value => value,
        });
    }
    if !function.arguments.contains(&arguments.len()) {
        return;
    }
    if let Ok(Value::Bytes(state)) = (function.run)(&arguments)
        && function.gives_state
    {
        catalog::open(&state).expect("a state that a function gives is read");
    }
});
