//! Ctrl-C: the first stops the generation or the download, the second ends the program at once. And what is told
//! where a mapped file is cut.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::SIGINT;
use tramontane::ErrorKind;
use tramontane::generate::CancelToken;

/// Whether SIGINT ends the program at once.
static EXIT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Lets SIGINT end the program with code 130 while there is nothing that could be stopped in an orderly way.
///
/// Nothing is lost by that: what is written is either whole or goes on from where it was.
pub(super) fn exit_on_interrupt() {
    let exit = EXIT.get_or_init(|| Arc::new(AtomicBool::new(true))).clone();
    let code = i32::from(ErrorKind::Cancelled.exit_code());
    // If it cannot be installed, SIGINT ends the program in the usual way.
    let _ = signal_hook::flag::register_conditional_shutdown(SIGINT, code, exit);
}

/// Lets SIGINT cancel `token`; a second SIGINT while it is cancelled ends the program with code 130.
///
/// If the handlers cannot be installed, SIGINT ends the program at once.
pub(super) fn cancel_on_interrupt(token: &CancelToken) {
    let flag = token.flag();
    let code = i32::from(ErrorKind::Cancelled.exit_code());
    // The order matters: the shutdown looks at the flag before this signal sets it.
    if signal_hook::flag::register_conditional_shutdown(SIGINT, code, flag.clone()).is_ok() {
        let installed = signal_hook::flag::register(SIGINT, flag).is_ok();
        if let (true, Some(exit)) = (installed, EXIT.get()) {
            exit.store(false, Ordering::Relaxed);
        }
    }
}

/// Lets the program end with a word instead of a bare SIGBUS when a weight file is cut while it is mapped.
#[cfg(unix)]
pub(super) fn explain_cut_files() {
    const WORDS: &[u8] =
        b"error: a weight file was cut while it was in use, or cannot be read any more\n  \
        try the command again, once nothing writes to the model's files\n";
    let action = || {
        // SAFETY: the bytes are there for the whole program, and a handler may write. Nothing is to be done if the
        // write fails.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len()) };
        signal_hook::low_level::exit(i32::from(ErrorKind::NoMemory.exit_code()))
    };
    // SAFETY: the action does nothing but write and exit at once, which a handler may do. If it cannot be installed,
    // SIGBUS ends the program in the usual way.
    let _ = unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, action) };
}

/// There is no such signal.
#[cfg(not(unix))]
pub(super) fn explain_cut_files() {}
