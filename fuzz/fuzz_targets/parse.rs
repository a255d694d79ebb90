//! Any text parses or is refused with a diagnostic that can be shown; what is formatted parses again to the same format.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = mergeql_lang::parse(text) {
        let _ = error.to_string();
    }
    let _ = mergeql_lang::split(text);
    let _ = mergeql_lang::is_incomplete(text);
    if let Ok(once) = mergeql_lang::format(text) {
        let twice = mergeql_lang::format(&once).expect("a formatted script parses");
        assert_eq!(once, twice);
    }
});
