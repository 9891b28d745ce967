//! A configuration of any text: an error or an architecture, never a panic and never a huge allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramontane_models::config::Config;

fuzz_target!(|text: &str| {
    for config in [Config::parse(text), Config::parse_native(text)].into_iter().flatten() {
        if let Ok((model, _)) = tramontane_models::describe(&config) {
            let _ = model.n_parameters();
        }
    }
});
