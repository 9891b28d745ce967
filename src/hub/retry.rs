//! How often and how long a request that failed is tried again.

use std::time::{Duration, Instant};

use super::http::{Failure, Retry};
use super::options::HubOptions;
use super::progress::{Event, Progress};
use crate::error::{Error, ErrorKind, Result};

/// How often a host that cannot be reached is tried again.
const BRIEF_TRIES: u32 = 2;
/// The longest pause between two attempts that nobody asked for.
const MAX_DELAY: Duration = Duration::from_secs(20);
/// How often it is looked, during a pause, whether the caller has cancelled.
const BLINK: Duration = Duration::from_millis(50);

/// The time that is left for one thing to succeed.
pub(super) struct Patience<'a> {
    options: &'a HubOptions,
    progress: &'a dyn Progress,
    since: Instant,
    tries: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(options: &'a HubOptions, progress: &'a dyn Progress) -> Self {
        Self { options, progress, since: Instant::now(), tries: 0 }
    }

    /// Forgets earlier failures: something worth waiting for came in.
    pub(super) fn renew(&mut self) {
        self.since = Instant::now();
        self.tries = 0;
    }

    /// Waits before the next attempt, or gives up with the failure's error.
    pub(super) fn wait(&mut self, failure: Failure, what: &str) -> Result<()> {
        let Failure { error, retry } = failure;
        check_cancelled(self.progress)?;
        let growing =
            self.options.first_delay.saturating_mul(1 << self.tries.min(16)).min(MAX_DELAY);
        let delay = match retry {
            Retry::Never => return Err(error),
            Retry::Briefly if self.tries >= BRIEF_TRIES => return Err(error),
            Retry::Briefly | Retry::After(None) => growing,
            Retry::After(Some(asked)) => asked.max(self.options.first_delay),
        };
        self.tries += 1;
        let spent = self.since.elapsed();
        if spent + delay > self.options.patience {
            let (tries, spent) = (self.tries, spent.as_secs_f32());
            let so =
                format!("gave up after {tries} attempts in {spent:.0} s; what is there is kept");
            return Err(match retry {
                Retry::After(Some(asked)) => {
                    error.so(so).hint(format!("again in {} s, as the server asks", asked.as_secs()))
                }
                Retry::Never | Retry::Briefly | Retry::After(None) => error.so(so),
            });
        }
        self.progress.event(Event::Retrying { file: what, reason: &error.what(), delay });
        pause(delay, self.progress)
    }
}

/// Sleeps, but wakes up if the caller cancels.
pub(super) fn pause(delay: Duration, progress: &dyn Progress) -> Result<()> {
    let end = Instant::now() + delay;
    loop {
        check_cancelled(progress)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(BLINK));
    }
}

/// An error if the caller has cancelled.
pub(super) fn check_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(cancelled()) } else { Ok(()) }
}

/// The error of a download that the caller has stopped.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the download was stopped")
        .so("what is there is kept: the next one goes on from it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> HubOptions {
        HubOptions {
            first_delay: Duration::from_millis(1),
            patience: Duration::from_millis(200),
            ..HubOptions::new("https://hub.example", None)
        }
    }

    fn failure(retry: Retry) -> Failure {
        Failure { error: Error::new(ErrorKind::Network, "x"), retry }
    }

    #[test]
    fn patience_ends() {
        let options = options();
        let mut patience = Patience::new(&options, &());
        let mut waits = 0;
        let error = loop {
            match patience.wait(failure(Retry::After(None)), "x") {
                Ok(()) => waits += 1,
                Err(e) => break e,
            }
        };
        assert!((3..20).contains(&waits), "{waits}");
        assert!(error.to_string().contains("gave up after"), "{error}");
    }

    #[test]
    fn what_cannot_get_better_is_not_repeated() {
        let options = options();
        let mut patience = Patience::new(&options, &());
        assert!(patience.wait(failure(Retry::Never), "x").is_err());
        let mut patience = Patience::new(&options, &());
        assert!(patience.wait(failure(Retry::Briefly), "x").is_ok());
        assert!(patience.wait(failure(Retry::Briefly), "x").is_ok());
        assert!(patience.wait(failure(Retry::Briefly), "x").is_err());
    }

    #[test]
    fn a_pause_longer_than_the_patience_is_told_at_once() {
        let options = options();
        let asked = Some(Duration::from_secs(3600));
        let error =
            Patience::new(&options, &()).wait(failure(Retry::After(asked)), "x").unwrap_err();
        assert!(error.to_string().contains("again in 3600 s"), "{error}");
    }

    #[test]
    fn a_pause_ends_when_the_caller_cancels() {
        struct Cancelled;
        impl Progress for Cancelled {
            fn event(&self, _event: Event<'_>) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let error = pause(Duration::from_secs(3600), &Cancelled).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
