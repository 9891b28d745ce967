//! Planted bugs: a change of a kernel's text, what runs it, and how it must be caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::Gpu;

/// A planted bug.
pub(crate) struct Mutant {
    pub(crate) what: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) change: fn(&str) -> String,
    /// Runs the operation and panics where a check fails or the result is wrong.
    pub(crate) probe: fn(&Gpu<'_>),
    /// What the panic must say.
    pub(crate) caught: &'static str,
}

/// A wrong result, as `assert_close` says it.
pub(crate) const WRONG: &str = "expected";

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Checks that every probe passes with the shipped kernels, and that every bug is caught as it says.
#[track_caller]
pub(crate) fn all_are_caught(mutants: &[Mutant]) {
    let mut missed = Vec::new();
    for mutant in mutants {
        (mutant.probe)(&Gpu::new());
        let edit = |name: &str, ptx: String| {
            if name != mutant.kernel {
                return ptx;
            }
            let changed = (mutant.change)(&ptx);
            assert_ne!(changed, ptx, "{}: the change changes nothing", mutant.what);
            changed
        };
        let run = || (mutant.probe)(&Gpu::edited(&edit));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(()) => missed.push(format!("{}: not caught", mutant.what)),
            Err(panic) => {
                let text = message(&*panic);
                if !text.contains(mutant.caught) {
                    missed.push(format!("{}: caught as: {text}", mutant.what));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
