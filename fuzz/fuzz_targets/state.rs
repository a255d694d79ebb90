//! Any bytes are a state in its one encoding, or an error; states join, compare and resolve without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mergeql_udfs::{catalog, codec};

fuzz_target!(|input: &[u8]| {
    let _ = catalog::open(input);
    let _ = codec::unpack(input);
    let Some((type_id, body)) = input.split_first() else { return };
    // With the right checksum, so that the bodies are reached.
    let bytes = codec::seal(*type_id, 0, body);
    let Ok(state) = catalog::open(&bytes) else { return };
    assert_eq!(state.encode(), bytes);
    let _ = state.value();
    let _ = state.info().to_json();
    if let Ok(joined) = catalog::join(&bytes, &bytes) {
        assert_eq!(joined, bytes, "a join with itself changes nothing");
    }
    let _ = catalog::compress(&bytes);
});
