//! One file for each strategy. `build.rs` finds them; a file registers what it defines, and nothing else has to know.

include!(concat!(env!("OUT_DIR"), "/strategies.rs"));
