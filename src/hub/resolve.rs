//! A name on the hub → a folder in the cache with all that the model needs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use super::api::{self, RemoteFile, RepoInfo};
use super::cache::{self, RepoCache};
use super::choose::{self, Weights};
use super::download::{Session, Wanted};
use super::http::{Client, Failure, Subject};
use super::options::HubOptions;
use super::progress::{Event, Progress};
use super::retry::{Patience, cancelled, check_cancelled};
use super::{DEFAULT_REVISION, names};
use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;
use crate::platform;

/// How often it is looked whether the caller has cancelled, while the network is silent.
const BLINK: Duration = Duration::from_millis(50);

/// A model that is in the cache after a [`pull`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// `org/name`.
    pub repo: String,
    /// The revision that was asked for.
    pub revision: String,
    /// The commit it is.
    pub commit: String,
    /// The folder with the files.
    pub path: PathBuf,
    /// The files that belong to the model.
    pub files: Vec<PulledFile>,
    /// How many bytes had to be transferred.
    pub transferred: u64,
}

/// One file of a pulled model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledFile {
    /// Its path in the repository and in the folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// sha256 of its content for large files, git's sha1 for small ones, in hexadecimal digits. Offline it is told
    /// where the cache links to contents by their hash.
    pub hash: Option<String>,
}

/// The files of a model that is on the hub: from the cache if it is all there, else downloaded.
pub(super) fn on_the_hub(
    repo: &str,
    revision: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<ModelFiles> {
    match from_cache(repo, revision, options) {
        Ok(found) => Ok(ModelFiles::folder(found.path)),
        Err(e) if options.offline => Err(e),
        Err(_) => Ok(ModelFiles::folder(pull(repo, revision, options, progress)?.path)),
    }
}

/// A model that is complete in the cache.
fn from_cache(repo: &str, revision: &str, options: &HubOptions) -> Result<Pulled> {
    let cache = RepoCache::new(options, repo, revision)?;
    let Some(commit) = cache.commit() else {
        return Err(not_cached(repo, revision, &["everything".to_owned()]));
    };
    let path = cache.snapshot(&commit);
    let mut missing = cache::missing(&path, options.weights);
    if options.offline {
        missing.retain(|name| name != cache::TOKENIZER);
    }
    if !missing.is_empty() {
        return Err(not_cached(repo, revision, &missing));
    }
    let (repo, revision) = (repo.to_owned(), revision.to_owned());
    let files =
        cache::files(&path).into_iter().map(|(name, size, hash)| PulledFile { name, size, hash });
    Ok(Pulled { repo, revision, commit, files: files.collect(), path, transferred: 0 })
}

fn not_cached(repo: &str, revision: &str, missing: &[String]) -> Error {
    let at = match revision {
        DEFAULT_REVISION => String::new(),
        revision => format!("@{revision}"),
    };
    let shown = missing[..missing.len().min(5)].join(", ");
    Error::new(ErrorKind::Network, format!("`{repo}{at}` is not in the cache (missing: {shown})"))
        .so("offline mode is on, so nothing was downloaded")
        .hint(format!("tramontane pull {repo}{at}, without --offline and HF_HUB_OFFLINE"))
}

/// Brings a model of the hub into the cache, as its revision is now.
///
/// Of several copies of the weights one is fetched. Files that are there already are not fetched again; with
/// [`HubOptions::force`] their hashes are checked first. Offline, a model that is complete in the cache is a success.
///
/// # Errors
///
/// If there is no such model, the hub cannot be asked or refuses, there is no room, or a content is wrong. What has
/// come in stays, and the next attempt goes on from there.
pub fn pull(
    repo: &str,
    revision: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    names::check_repo(repo)?;
    names::check_revision(revision)?;
    if options.offline {
        return from_cache(repo, revision, options);
    }
    let client = Client::new(options)?;
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&client, progress, &done));
        let _end = EndOfWatch { done: &done, watcher: watcher.thread().clone() };
        pull_with(&client, repo, revision, options, progress)
    });
    // Whatever broke after the caller cancelled broke for that reason.
    result.map_err(|e| if progress.cancelled() { cancelled() } else { e })
}

/// A blocked read does not see that the caller has cancelled: this thread does, and ends it.
fn watch(client: &Client, progress: &dyn Progress, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        if progress.cancelled() {
            client.agent().shutdown();
            return;
        }
        std::thread::park_timeout(BLINK);
    }
}

/// Ends the watching thread, however the watched one ends.
struct EndOfWatch<'a> {
    done: &'a AtomicBool,
    watcher: Thread,
}

impl Drop for EndOfWatch<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        self.watcher.unpark();
    }
}

fn pull_with(
    client: &Client,
    repo: &str,
    revision: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    let subject = Subject { repo, revision, file: None };
    let info = retrying(options, progress, repo, || api::repo_info(client, subject))?;
    let cache = RepoCache::new(options, repo, revision)?;
    cache.create()?;
    let commit = &*info.commit;
    let session = Session { client, cache: &cache, options, progress, repo, commit };
    let plan = plan(&session, &info, subject)?;
    let mut transferred = plan.transferred;
    let absent = absent(&session, &plan.files)?;
    check_room(&session, &absent)?;
    for file in &absent {
        transferred += session.fetch(file)?;
    }
    // Only now, when every content is there, the names appear; `config.json` as the last one.
    for file in &plan.files {
        let digits = file.hash.digits();
        let renewed = absent.iter().any(|absent| absent.hash == file.hash);
        if cache.blob(digits).exists() {
            cache.link(commit, &file.name, digits, renewed)?;
        }
    }
    cache.write_ref(commit)?;
    let path = cache.snapshot(commit);
    let mut missing = cache::missing(&path, options.weights);
    missing.retain(|name| name != cache::TOKENIZER);
    if !missing.is_empty() {
        let what = format!("`{repo}` is no whole model: it lacks {}", missing.join(", "));
        return Err(Error::not_supported(what).at(path.display()));
    }
    let files = plan.files.into_iter().map(|file| PulledFile {
        name: file.name,
        size: file.size,
        hash: Some(file.hash.digits().to_owned()),
    });
    Ok(Pulled {
        repo: repo.to_owned(),
        revision: revision.to_owned(),
        files: files.collect(),
        commit: info.commit,
        path,
        transferred,
    })
}

/// The files that are needed.
struct Plan {
    /// In the order in which they get their names.
    files: Vec<Wanted>,
    /// How many bytes were transferred to find out.
    transferred: u64,
}

/// Chooses the files. An index of the weights is fetched for that, since only it knows the shards.
fn plan(session: &Session<'_>, info: &RepoInfo, subject: Subject<'_>) -> Result<Plan> {
    let names: Vec<&str> = info.files.iter().map(|file| &*file.name).collect();
    let known = |name: &str| -> Result<Wanted> {
        let file = info.files.iter().find(|file| file.name == name).ok_or_else(|| {
            Error::bad_model(format!("the index of the weights names {name}, which is not there"))
                .at(format!("{} on the hub", session.repo))
        })?;
        wanted(session, file, subject)
    };
    if !names.iter().any(|name| matches!(*name, "config.json" | "params.json")) {
        return Err(Error::not_supported("there is no config.json: this is not a language model")
            .at(format!("{} on the hub", session.repo)));
    }
    let mut plan = Plan { files: Vec::new(), transferred: 0 };
    let small = choose::small_files(&names);
    if session.options.weights {
        let place = |e: Error| e.at(format!("{} on the hub", session.repo));
        match choose::weights(&names).map_err(place)? {
            Weights::Files(files) => {
                for file in files {
                    plan.files.push(known(&file)?);
                }
            }
            Weights::Index(name) => {
                let index = known(&name)?;
                let renewed = !session.has(&index)?;
                if renewed {
                    plan.transferred += session.fetch(&index)?;
                }
                session.cache.link(session.commit, &name, index.hash.digits(), renewed)?;
                let folder = session.cache.snapshot(session.commit);
                for shard in cache::read_index(&folder, &name)?.shards {
                    plan.files.push(known(&shard)?);
                }
                plan.files.push(index);
            }
        }
    }
    let mut files = small.into_iter().map(known).collect::<Result<Vec<_>>>()?;
    // Small files are fetched first and named last, so that `config.json` completes the snapshot.
    plan.files.append(&mut files);
    Ok(plan)
}

/// A file with its size and hash; asked for one by one if the list did not tell.
fn wanted(session: &Session<'_>, file: &RemoteFile, subject: Subject<'_>) -> Result<Wanted> {
    let Session { client, options, progress, commit, .. } = *session;
    let subject = Subject { file: Some(&file.name), ..subject };
    let file = match (file.size, &file.hash) {
        (Some(_), Some(_)) => file.clone(),
        _ => retrying(options, progress, &file.name, || {
            api::complete(client, commit, file, subject)
        })?,
    };
    let (Some(size), Some(hash)) = (file.size, file.hash) else {
        let what = format!("the size or the hash of {} is not told", file.name);
        return Err(Error::new(ErrorKind::Network, what).at(session.repo));
    };
    Ok(Wanted { name: file.name, size, hash })
}

/// The files that have to be fetched, the smallest first: what is wrong with a model then shows early.
fn absent(session: &Session<'_>, files: &[Wanted]) -> Result<Vec<Wanted>> {
    let mut absent = Vec::new();
    for file in files {
        if !session.has(file)? {
            absent.push(file.clone());
        }
    }
    absent.sort_by(|a, b| (a.size, &a.name).cmp(&(b.size, &b.name)));
    absent.dedup_by(|a, b| a.hash == b.hash);
    Ok(absent)
}

/// Refuses to begin what cannot end: needs the missing bytes and 5 % more on the disk.
fn check_room(session: &Session<'_>, absent: &[Wanted]) -> Result<()> {
    let bytes = absent
        .iter()
        .fold(0_u64, |sum, file| sum.saturating_add(file.size - session.left_over(file)));
    session.progress.event(Event::Planned { files: absent.len(), bytes });
    let blobs = session.cache.blobs();
    let Some(free) = platform::free_space(&blobs) else { return Ok(()) };
    let needed = bytes.saturating_add(bytes / 20);
    if bytes == 0 || needed <= free {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!("`{}` needs {needed} more bytes on the disk, and {free} are free", session.repo),
    )
    .at(blobs.display())
    .so("nothing was fetched")
    .hint("making room, or HF_HOME on another disk"))
}

/// Repeats a small request until it succeeds or patience ends.
fn retrying<T>(
    options: &HubOptions,
    progress: &dyn Progress,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T> {
    let mut patience = Patience::new(options, progress);
    loop {
        check_cancelled(progress)?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) => patience.wait(failure, what)?,
        }
    }
}
