//! What other libraries wrote, or claim to have written: frames and sketches, with sound heads and any content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mergeql_udfs::{Call, Type, Value, catalog, frames};

fuzz_target!(|input: &[u8]| {
    let [kind, content @ ..] = input else { return };
    let _ = frames::from_frame(content, Some("id"));
    let _ = frames::of_batch(content);
    let mut frame = b"CRDT\x00\x01".to_vec();
    frame.extend([*kind, 0]);
    frame.extend((content.len() as u32).to_be_bytes());
    frame.extend(content);
    if let Ok(state) = frames::from_frame(&frame, Some("id")) {
        catalog::open(&state).expect("a state out of a frame is read");
        let _ = frames::to_frame(&state);
    }
    for strategy in ["topk", "kll", "countmin", "tdigest"] {
        let entry = catalog::find(strategy).expect("invariant: sketches are built in");
        let mut partial = entry.bind(&Call::new(vec![Type::Bytes, Type::Text])).expect("it takes images").partial();
        if partial.update(&[Value::Bytes(content.into()), Value::text("a")]).is_ok() {
            let state = partial.encode().expect("something was added");
            let _ = catalog::open(&state).expect("a state is read").value();
        }
    }
});
