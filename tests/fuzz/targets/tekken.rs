//! A `tekken.json` of any bytes: an error or a tokenizer that keeps its promises, never a panic.
#![no_main]

#[path = "../common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| common::check("tekken.json", bytes));
