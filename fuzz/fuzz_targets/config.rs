#![no_main]

#[path = "../config.rs"]
mod config;

// The program's own command line, which is no part of the library; its modules call each other `crate::cli`.
#[allow(dead_code, unused_imports)]
#[path = "../../src/cli/mod.rs"]
mod cli;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    config::config(data);
});
