//! Work of unknown length, on a thread that is watched.
//!
//! Fuel counts the steps of a template, but not what one step may cost: adding a list to itself costs one,
//! however long the list has become, and so does writing out a list that holds itself many times over. A deadline
//! catches what fuel does not see, and a deep stack of its own carries what a template nests.
//!
//! The deadline bounds memory, too, if loosely: a template that does nothing but double what it has comes to less than
//! 100 MB until then. A real bound would need an engine that counts before it builds; minijinja lets its host count
//! steps only. The thread that is left behind may go on to grow. It ends with the program, so the command line is
//! safe; who renders templates of strangers in a process that stays should give them one of their own.

use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The stack of the thread, in bytes. Only the pages that are used count as memory.
const STACK: usize = 32 << 20;

/// How watched work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended<T> {
    /// With a result.
    Well(T),
    /// Not within the time: the thread is left behind, since nothing can stop it.
    Late,
    /// By a panic.
    Badly,
}

/// Does `work` and waits for it no longer than `time`.
///
/// Where no thread can be had, the work is done unwatched.
pub(super) fn watch<T: Send + 'static>(
    time: Duration,
    work: impl Fn() -> T + Send + Sync + 'static,
) -> Ended<T> {
    let work = Arc::new(work);
    let there = Arc::clone(&work);
    let (send, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // A result that comes late finds nobody to take it.
    match thread.spawn(move || drop(send.send(there()))) {
        Err(_) => Ended::Well(work()),
        Ok(_) => match receive.recv_timeout(time) {
            Ok(result) => Ended::Well(result),
            Err(mpsc::RecvTimeoutError::Timeout) => Ended::Late,
            Err(mpsc::RecvTimeoutError::Disconnected) => Ended::Badly,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_well_late_or_badly() {
        let long = Duration::from_secs(60);
        assert_eq!(watch(long, || 7), Ended::Well(7));
        assert_eq!(
            watch(Duration::ZERO, || std::thread::sleep(Duration::from_millis(50))),
            Ended::Late
        );
        let broken = |n: &[i32]| n[0];
        assert_eq!(watch(long, move || broken(&[])), Ended::Badly);
    }
}
