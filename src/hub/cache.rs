//! The cache folder that all Hugging Face tools share.
//!
//! ```text
//! models--org--name/
//!   refs/main                      the commit that a branch was at last
//!   blobs/<hash>                   contents, each once; <hash>.incomplete while one is fetched
//!   snapshots/<commit>/config.json → ../../blobs/<hash>
//! .locks/models--org--name/<hash>.lock
//! ```
//!
//! A snapshot is a model when its configuration, a tokenizer and one whole copy of the weights are there: that is
//! checked each time, since other programs put single files into the same folders.

use std::collections::HashSet;
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::choose::{self, Weights};
use super::names::is_hex;
use super::options::HubOptions;
use crate::checkpoint::index::Index;
use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;

/// The largest index of weights that is read, in bytes.
const MAX_INDEX: u64 = 64 << 20;
/// How deep folders in the cache are looked into.
const MAX_DEPTH: usize = 4;

/// A model of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `org/name`.
    pub name: String,
    /// The branches and tags that were at this commit when they were last asked for.
    pub revisions: Vec<String>,
    /// The commit.
    pub commit: String,
    /// The folder with the files.
    pub path: PathBuf,
    /// The size of the files in bytes.
    pub bytes: u64,
    /// Whether configuration, tokenizer and weights are all there.
    pub complete: bool,
    /// When a file was last read, as far as the file system keeps account of it.
    pub last_used: Option<SystemTime>,
}

/// The models in the cache, by name.
///
/// # Errors
///
/// If the cache folder is not known or cannot be read. A cache that does not exist yet is empty.
pub fn list_cached(options: &HubOptions) -> Result<Vec<CachedModel>> {
    let root = root(options)?;
    let mut models = Vec::new();
    for folder in folders(root)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_prefix("models--") else { continue };
        let name = name.replace("--", "/");
        let mut refs = Vec::new();
        collect_refs(&folder.join("refs"), "", &mut refs);
        for path in folders(&folder.join("snapshots"))? {
            let commit = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut usage = Usage::default();
            usage.add_folder(&path, 0);
            let here = refs.iter().filter(|(_, at)| *at == commit);
            let mut revisions: Vec<String> = here.map(|(name, _)| name.clone()).collect();
            revisions.sort_unstable();
            models.push(CachedModel {
                name: name.clone(),
                revisions,
                complete: missing(&path, true).is_empty(),
                bytes: usage.bytes,
                last_used: usage.last_used,
                commit,
                path,
            });
        }
    }
    models.sort_by(|a, b| (&a.name, &a.commit).cmp(&(&b.name, &b.commit)));
    Ok(models)
}

/// What the files of a snapshot take.
#[derive(Default)]
struct Usage {
    bytes: u64,
    last_used: Option<SystemTime>,
    /// Names may share a content.
    seen: HashSet<PathBuf>,
}

impl Usage {
    fn add_folder(&mut self, folder: &Path, depth: usize) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if meta.is_dir() && depth < MAX_DEPTH {
                self.add_folder(&path, depth + 1);
            } else if meta.is_file() && self.seen.insert(path.canonicalize().unwrap_or(path)) {
                self.bytes += meta.len();
                self.last_used = self.last_used.max(meta.accessed().or(meta.modified()).ok());
            }
        }
    }
}

/// The folders in `folder`; none if it does not exist.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder, e)),
    };
    let mut folders: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort_unstable();
    Ok(folders)
}

/// The revisions in `refs/` with their commits. Names with slashes are folders there.
fn collect_refs(folder: &Path, prefix: &str, refs: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && prefix.matches('/').count() < MAX_DEPTH {
            collect_refs(&path, &format!("{prefix}{name}/"), refs);
        } else if let Some(commit) = read_ref(&path) {
            refs.push((format!("{prefix}{name}"), commit));
        }
    }
}

fn read_ref(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    let text =
        (meta.is_file() && meta.len() < 200).then(|| std::fs::read_to_string(path).ok())??;
    Some(text.trim().to_owned()).filter(|commit| is_hex(commit, 40))
}

fn root(options: &HubOptions) -> Result<&Path> {
    options.cache.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Io, "the cache folder is not known: neither HOME nor HF_HOME is set")
            .hint("HF_HOME=/a/folder")
    })
}

/// How a list of what is missing calls the tokenizer.
///
/// A model without one can run on token ids, but is seldom meant: it is asked for, and not insisted on.
pub(super) const TOKENIZER: &str = "a tokenizer";

/// What a snapshot lacks to be a model; nothing if it is one.
///
/// Without `weights`, the configuration and the tokenizer are enough.
pub(super) fn missing(folder: &Path, weights: bool) -> Vec<String> {
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // A link whose blob is gone is not there.
        .filter(|name| folder.join(name).is_file())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut missing = Vec::new();
    if !names.iter().any(|name| matches!(*name, "config.json" | "params.json")) {
        missing.push("config.json".to_owned());
    }
    if !choose::has_tokenizer(&names) {
        missing.push(TOKENIZER.to_owned());
    }
    if weights {
        match choose::weights(&names) {
            Ok(Weights::Files(_)) => {}
            Ok(Weights::Index(index)) => match read_index(folder, &index) {
                Ok(index) => {
                    let lacks = |shard: &String| !names.contains(&shard.as_str());
                    missing.extend(index.shards.into_iter().filter(lacks));
                }
                Err(_) => missing.push(index),
            },
            Err(_) => missing.push("the weights".to_owned()),
        }
    }
    missing
}

/// The files of a snapshot: name, size in bytes, and the hash that the link's target tells.
pub(super) fn files(folder: &Path) -> Vec<(String, u64, Option<String>)> {
    let mut files = Vec::new();
    let mut add = |folder: &Path, prefix: &str| {
        for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| e.ok()) {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let hash = std::fs::read_link(&path).ok().and_then(|target| {
                let digits = target.file_name()?.to_str()?.to_owned();
                (is_hex(&digits, 40) || is_hex(&digits, 64)).then_some(digits)
            });
            if meta.is_file() {
                files.push((format!("{prefix}{}", name.to_string_lossy()), meta.len(), hash));
            }
        }
    };
    add(folder, "");
    let templates = "additional_chat_templates";
    add(&folder.join(templates), &format!("{templates}/"));
    files.sort_unstable();
    files
}

/// Reads the index `name` of a folder.
pub(super) fn read_index(folder: &Path, name: &str) -> Result<Index> {
    let place = folder.join(name).display().to_string();
    let text = ModelFiles::folder(folder).read_text(name, MAX_INDEX)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "the index of the weights does not exist").at(&place)
    })?;
    Index::parse(&text).map_err(|e| e.at(place))
}

/// The part of the cache that belongs to one repository.
pub(super) struct RepoCache {
    cache: CacheRepo,
    /// `models--org--name`.
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
    symlinks: bool,
}

impl RepoCache {
    pub(super) fn new(options: &HubOptions, repo: &str, revision: &str) -> Result<Self> {
        let root = root(options)?;
        let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
        let name = repo.folder_name();
        Ok(Self {
            folder: root.join(&name),
            locks: root.join(".locks").join(name),
            revision: revision.to_owned(),
            symlinks: options.symlinks,
            cache: Cache::new(root.to_owned()).repo(repo),
        })
    }

    /// The commit that the revision was at when it was last asked for; a commit is its own.
    pub(super) fn commit(&self) -> Option<String> {
        if is_hex(&self.revision, 40) {
            return Some(self.revision.clone());
        }
        read_ref(&self.folder.join("refs").join(&self.revision))
    }

    /// The folder with the files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.pointer_path(commit)
    }

    /// The folder with the contents.
    pub(super) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// Where the content with this hash is.
    pub(super) fn blob(&self, digits: &str) -> PathBuf {
        self.blobs().join(digits)
    }

    /// The file whose lock belongs to whoever writes the content with this hash.
    pub(super) fn lock(&self, digits: &str) -> PathBuf {
        self.locks.join(format!("{digits}.lock"))
    }

    /// Creates the folders that a download writes to.
    pub(super) fn create(&self) -> Result<()> {
        for folder in [self.blobs(), self.folder.join("snapshots"), self.locks.clone()] {
            std::fs::create_dir_all(&folder).map_err(|e| {
                Error::io(&folder, e)
                    .so("the model cannot be put into the cache")
                    .hint("HF_HOME=/a/folder/that/can/be/written")
            })?;
        }
        Ok(())
    }

    /// Makes the content with this hash appear as `file` in the snapshot of `commit`.
    ///
    /// `renewed` says that the content was written just now, so that copies of it have to be made again.
    pub(super) fn link(&self, commit: &str, file: &str, digits: &str, renewed: bool) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let blob = self.blob(digits);
        let up = "../".repeat(file.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{digits}"));
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                if std::fs::read_link(&path).is_ok_and(|found| found == target) {
                    return Ok(());
                }
            }
            Ok(meta) => {
                let expected = std::fs::metadata(&blob).map(|blob| blob.len());
                if !renewed && expected.map_or(true, |expected| meta.len() == expected) {
                    return Ok(());
                }
            }
            Err(_) => {}
        }
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let linked = self.symlinks && symlink(&target, &temporary).is_ok();
        let made = if linked { Ok(()) } else { hard_link_or_copy(&blob, &temporary) };
        made.and_then(|()| std::fs::rename(&temporary, &path)).map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            Error::io(&path, e)
        })
    }

    /// Notes that the revision is at `commit`.
    pub(super) fn write_ref(&self, commit: &str) -> Result<()> {
        if self.revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.revision);
        if read_ref(&path).as_deref() == Some(commit) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!("{name}.{}.tmp", std::process::id()));
        std::fs::write(&temporary, commit)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| Error::io(&path, e))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Makes `blob` appear as `path` where links by name are not possible.
fn hard_link_or_copy(blob: &Path, path: &Path) -> std::io::Result<()> {
    // The blob may itself be a link into a store that several repositories share.
    let blob = blob.canonicalize()?;
    std::fs::hard_link(&blob, path).or_else(|_| std::fs::copy(&blob, path).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn cache(symlinks: bool) -> (tempfile::TempDir, HubOptions, RepoCache) {
        let folder = tempfile::tempdir().unwrap();
        let root = Some(folder.path().to_owned());
        let options = HubOptions { symlinks, ..HubOptions::new("https://hub.example", root) };
        let repo = RepoCache::new(&options, "org/name", "main").unwrap();
        repo.create().unwrap();
        (folder, options, repo)
    }

    fn put(repo: &RepoCache, file: &str, content: &str) {
        let digits = format!("{:040}", content.len());
        std::fs::write(repo.blob(&digits), content).unwrap();
        repo.link(COMMIT, file, &digits, true).unwrap();
    }

    #[test]
    fn a_file_appears_in_its_snapshot_with_and_without_links() {
        for symlinks in [true, false] {
            let (_folder, _, repo) = cache(symlinks);
            for file in ["a.json", "additional_chat_templates/b.jinja"] {
                put(&repo, file, "one");
                put(&repo, file, "three");
                let path = repo.snapshot(COMMIT).join(file);
                assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
                assert_eq!(path.is_symlink(), symlinks && cfg!(unix));
            }
            let left = std::fs::read_dir(repo.snapshot(COMMIT)).unwrap().count();
            assert_eq!(left, 2, "nothing temporary stays");
        }
    }

    #[test]
    fn a_revision_is_remembered_and_a_commit_is_its_own() {
        let (_folder, options, repo) = cache(true);
        assert_eq!(repo.commit(), None);
        repo.write_ref(COMMIT).unwrap();
        assert_eq!(repo.commit().as_deref(), Some(COMMIT));
        let branch = RepoCache::new(&options, "org/name", "refs/pr/1").unwrap();
        branch.write_ref(COMMIT).unwrap();
        assert_eq!(branch.commit().as_deref(), Some(COMMIT));
        let commit = RepoCache::new(&options, "org/name", COMMIT).unwrap();
        assert_eq!(commit.commit().as_deref(), Some(COMMIT));
        std::fs::write(repo.folder.join("refs/main"), "../../../etc").unwrap();
        assert_eq!(repo.commit(), None);
    }

    #[test]
    fn a_snapshot_is_a_model_only_when_all_is_there() {
        let (_folder, _, repo) = cache(true);
        let lacks = || missing(&repo.snapshot(COMMIT), true).join(", ");
        assert_eq!(lacks(), "config.json, a tokenizer, the weights");
        put(&repo, "config.json", "{}");
        put(&repo, "tokenizer.json", "{ }");
        assert!(missing(&repo.snapshot(COMMIT), false).is_empty());
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        put(&repo, "model.safetensors.index.json", index);
        put(&repo, "model-2.safetensors", "w");
        assert_eq!(lacks(), "model-1.safetensors");
        put(&repo, "model-1.safetensors", "ww");
        assert_eq!(lacks(), "");
        std::fs::remove_file(repo.blob(&format!("{:040}", 1))).unwrap();
        assert_eq!(lacks(), "model-2.safetensors");
    }

    #[test]
    fn the_list_tells_names_sizes_and_what_is_complete() {
        let (_folder, options, repo) = cache(true);
        assert_eq!(list_cached(&options).unwrap(), []);
        put(&repo, "config.json", "{}");
        put(&repo, "copy.json", "{}");
        put(&repo, "tokenizer.json", "{ }");
        repo.write_ref(COMMIT).unwrap();
        let list = list_cached(&options).unwrap();
        let [model] = &list[..] else { panic!("{list:?}") };
        assert_eq!((model.name.as_str(), model.commit.as_str()), ("org/name", COMMIT));
        assert_eq!((model.bytes, model.complete), (5, false));
        assert_eq!(model.revisions, ["main"]);
        assert!(model.last_used.is_some());
        put(&repo, "model.safetensors", "weights");
        assert!(list_cached(&options).unwrap()[0].complete);
    }

    #[test]
    fn a_cache_that_cannot_be_is_named() {
        let error =
            list_cached(&HubOptions::new("https://hub.example", None)).unwrap_err().to_string();
        assert!(error.contains("HF_HOME"), "{error}");
    }
}
