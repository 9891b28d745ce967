//! Downloads from a hub on loopback: what is fetched, what is refused, and what survives.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[cfg(feature = "cli")]
mod binary;
mod cache;
#[path = "../common/hub.rs"]
mod fake;
mod refusals;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tramontane::hub::{Event, HubOptions, Progress, pull};
use tramontane::{Error, ErrorKind};

use fake::{FakeHub, REPO};

const SIZE: usize = 3 << 20;

struct Setup {
    hub: FakeHub,
    folder: TempDir,
    options: HubOptions,
}

fn setup() -> Setup {
    let hub = FakeHub::new(SIZE);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("le cache à moi");
    let options = HubOptions {
        idle: Duration::from_secs(1),
        patience: Duration::from_secs(30),
        first_delay: Duration::from_millis(10),
        ..HubOptions::new(hub.endpoint(), Some(cache))
    };
    Setup { hub, folder, options }
}

impl Setup {
    fn pull(&self) -> Result<tramontane::hub::Pulled, Error> {
        pull(REPO, "main", &self.options, &())
    }

    fn cache(&self) -> PathBuf {
        self.options.cache.clone().unwrap()
    }

    fn repo(&self) -> PathBuf {
        self.cache().join(format!("models--{}", REPO.replace('/', "--")))
    }

    fn weights(&self) -> PathBuf {
        self.repo().join("snapshots").join(self.hub.commit()).join("model.safetensors")
    }

    /// The names of the contents in the cache, whole or not.
    fn blobs(&self) -> Vec<String> {
        names(&self.repo().join("blobs"))
    }

    /// Leaves the first `n` bytes of the weights as an earlier attempt would have.
    fn leave(&self, n: usize, tag: Option<&str>) {
        let blobs = self.repo().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let weights = self.hub.file("model.safetensors");
        let partial = blobs.join(format!("{}.incomplete", fake::sha256(&weights)));
        std::fs::write(&partial, &weights[..n]).unwrap();
        if let Some(tag) = tag {
            std::fs::write(partial.with_extension("incomplete.etag"), tag).unwrap();
        }
    }

    #[track_caller]
    fn assert_whole(&self) {
        assert_eq!(
            std::fs::read(self.weights()).unwrap(),
            self.hub.file("model.safetensors"),
            "the weights differ"
        );
        let left: Vec<String> =
            self.blobs().into_iter().filter(|name| name.contains("incomplete")).collect();
        assert_eq!(left, [""; 0], "something is left over");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, Error>, kind: ErrorKind, words: &[&str]) -> String {
    let error = result.expect_err("it must be refused");
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in:\n{message}");
    }
    message
}

/// Remembers what it hears.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Seen {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self, is: impl Fn(&str) -> bool) -> usize {
        self.lines().iter().filter(|line| is(line)).count()
    }
}

impl Progress for Seen {
    fn event(&self, event: Event<'_>) {
        if let Event::Waiting { file } = event {
            self.0.lock().unwrap().push(format!("wait {file}"));
        }
        if let Event::Retrying { file, reason, .. } = event {
            self.0.lock().unwrap().push(format!("retry {file}: {reason}"));
        }
    }
}
