//! Ctrl-C: the first stops the generation, the second ends the program at once.

use signal_hook::consts::SIGINT;
use tramontane::ErrorKind;
use tramontane::generate::CancelToken;

/// Lets SIGINT cancel `token`; a second SIGINT while it is cancelled ends the program with code 130.
///
/// Before this is called, SIGINT ends the program as usual. If the handlers cannot be installed, it stays so.
pub(super) fn cancel_on_interrupt(token: &CancelToken) {
    let flag = token.flag();
    let code = i32::from(ErrorKind::Cancelled.exit_code());
    // The order matters: the shutdown looks at the flag before this signal sets it.
    if signal_hook::flag::register_conditional_shutdown(SIGINT, code, flag.clone()).is_ok() {
        let _ = signal_hook::flag::register(SIGINT, flag);
    }
}
