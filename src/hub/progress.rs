//! What a download tells while it runs. The library draws nothing: whoever calls decides what to show.

use std::time::Duration;

/// Something that happened during a download. Sizes and positions are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// It is known what has to be fetched.
    Planned {
        /// How many files are not there yet.
        files: usize,
        /// How many bytes of them are not there yet.
        bytes: u64,
    },
    /// A file that is already there, or its beginning, is read to check its hash.
    Checking {
        /// The file's name in the repository.
        file: &'a str,
        /// How much has to be read.
        size: u64,
    },
    /// The transfer of a file begins.
    Started {
        /// The file's name in the repository.
        file: &'a str,
        /// Its size.
        size: u64,
        /// Where it goes on: more than 0 if an earlier attempt left a part.
        position: u64,
    },
    /// More of a file is there; or less, if the server made the transfer begin again.
    Advanced {
        /// The file's name in the repository.
        file: &'a str,
        /// How much of it is there.
        position: u64,
    },
    /// A file is complete, and its content is the right one.
    Finished {
        /// The file's name in the repository.
        file: &'a str,
    },
    /// Another process downloads this file: it is waited for.
    Waiting {
        /// The file's name in the repository.
        file: &'a str,
    },
    /// The network or the hub had a fault that may pass: the next attempt follows.
    Retrying {
        /// The file's name in the repository, or what else was asked for.
        file: &'a str,
        /// What went wrong.
        reason: &'a str,
        /// How long is waited before the next attempt.
        delay: Duration,
    },
}

/// Hears of a download's events, and may stop it.
pub trait Progress: Send + Sync {
    /// Called for every event, from the thread that downloads.
    fn event(&self, event: Event<'_>) {
        let _ = event;
    }

    /// Whether the download should stop; asked many times a second.
    ///
    /// What is already there stays, and the next download goes on from it.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Shows nothing and never stops.
impl Progress for () {}
