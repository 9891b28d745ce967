//! One writer for each content, among all processes on this machine.
//!
//! The lock is the operating system's, on a file that stays: it ends with the process that holds it, however
//! that ends. Python's hub library locks the same files in the same way.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::progress::{Event, Progress};
use super::retry;
use crate::error::{Error, Result};

/// How often it is tried again to get a lock that somebody holds.
const POLL: Duration = Duration::from_millis(200);

/// The right to write one content, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock at `path`; if somebody holds it, says so once and waits.
pub(super) fn acquire(path: &Path, what: &str, progress: &dyn Progress) -> Result<Lock> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    progress.event(Event::Waiting { file: what });
                    told = true;
                }
                retry::pause(POLL, progress)?;
            }
            // Some network file systems have no locks. Two writers then do the same work twice, and the content
            // is still checked before it gets its name.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                return Ok(Lock { _file: file });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Count(AtomicUsize);

    impl Progress for Count {
        fn event(&self, event: Event<'_>) {
            assert_eq!(event, Event::Waiting { file: "x" });
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_second_waits_and_says_so_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let first = acquire(&path, "x", &()).unwrap();
        let count = Count(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| acquire(&path, "x", &count).unwrap());
            while count.0.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap();
        });
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
