//! Which of the weight files in a folder are the model's.
//!
//! A repository may hold its weights twice, under Hugging Face names and under Mistral's own. One copy is
//! loaded, never a mixture.

use std::path::{Path, PathBuf};

use super::index::Index;
use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;

/// The largest index that is read, in bytes.
const MAX_INDEX: u64 = 64 << 20;
/// How many links may lead from a name to its file, all inside the folder.
const MAX_LINKS: usize = 8;

/// The weight files that were chosen.
pub(super) struct Choice {
    /// The files, in the order of the index or of their names.
    pub(super) files: Vec<PathBuf>,
    /// The index that named them, and how messages name it.
    pub(super) index: Option<(Index, String)>,
    /// What was passed over, for the person who asks.
    pub(super) notes: Vec<String>,
}

/// One copy of the weights in a folder.
enum Copy {
    /// The file that lists the shards.
    Index(String),
    /// One file.
    Single(String),
    /// Numbered files without an index, and how many their names promise.
    Numbered(Vec<String>, u32),
}

impl Copy {
    fn describe(&self) -> String {
        match self {
            Self::Index(name) => name.clone(),
            Self::Single(name) => name.clone(),
            Self::Numbered(names, _) => format!("{} and its like", names[0]),
        }
    }
}

/// Chooses the weights of the model in `folder`.
///
/// The order is: `model.safetensors.index.json`, `model.safetensors`, `model-0000x-of-…`, then the same three for
/// `consolidated`, Mistral's own layout; then any other `*.safetensors` if there is exactly one. A folder that
/// has `params.json` but no `config.json` prefers `consolidated`.
pub(super) fn choose(folder: &Path) -> Result<Choice> {
    let names = list(folder)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let native_first = has("params.json") && !has("config.json");
    let stems = if native_first { ["consolidated", "model"] } else { ["model", "consolidated"] };
    let mut copies = Vec::new();
    for stem in stems {
        let (index, single) =
            (format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors"));
        let found = copies.len();
        if has(&index) {
            copies.push(Copy::Index(index));
        }
        if has(&single) {
            copies.push(Copy::Single(single));
        }
        // Beside an index or a whole file, numbered files are parts of it, or left over.
        if copies.len() == found {
            copies.extend(numbered(&names, stem));
        }
    }
    if copies.is_empty() {
        copies.push(Copy::Single(other_file(folder, &names)?));
    }
    let left: Vec<String> = copies.iter().skip(1).map(Copy::describe).collect();
    let copy = copies.swap_remove(0);
    let mut notes = Vec::new();
    if !left.is_empty() {
        notes.push(format!(
            "loaded the weights of {}; left aside {}",
            copy.describe(),
            left.join(", ")
        ));
    }
    let names = match copy {
        Copy::Index(name) => return from_index(folder, &name, notes),
        Copy::Single(name) => vec![name],
        Copy::Numbered(names, count) => {
            check_complete(&names, count).map_err(|e| e.at(folder.display()))?;
            names
        }
    };
    let files = names.iter().map(|name| inside(folder, name)).collect::<Result<_>>()?;
    Ok(Choice { files, index: None, notes })
}

/// Takes the weight file that the caller named, or the files of the index that the caller named.
pub(super) fn named(folder: &Path, path: &Path) -> Result<Choice> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(".index.json") {
        let folder = path.parent().unwrap_or(folder);
        return from_index(folder, name, Vec::new());
    }
    Ok(Choice { files: vec![path.to_owned()], index: None, notes: Vec::new() })
}

fn from_index(folder: &Path, name: &str, notes: Vec<String>) -> Result<Choice> {
    let place = folder.join(name).display().to_string();
    let text = ModelFiles::folder(folder).read_text(name, MAX_INDEX)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "the index of the weights does not exist").at(&place)
    })?;
    let index = Index::parse(&text).map_err(|e| e.at(&place))?;
    let files: Vec<PathBuf> =
        index.shards.iter().map(|shard| inside(folder, shard)).collect::<Result<_>>()?;
    check_all_present(&index, &files).map_err(|e| e.at(&place))?;
    Ok(Choice { files, index: Some((index, place)), notes })
}

/// Names every missing shard at once, so that one more download mends it.
fn check_all_present(index: &Index, files: &[PathBuf]) -> Result<()> {
    let mut present = 0;
    let mut missing = Vec::new();
    for (shard, file) in index.shards.iter().zip(files) {
        // A broken link is missing too: the cache then lacks the file it points to.
        match std::fs::metadata(file) {
            Ok(meta) => present += meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push(shard.as_str()),
            Err(_) => {}
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (n, total) = (missing.len(), index.shards.len());
    missing.truncate(10);
    let size = match index.total_size {
        Some(size) => format!(" (about {} bytes in all)", size.saturating_sub(present)),
        None => String::new(),
    };
    let more = if n > missing.len() { ", …" } else { "" };
    Err(Error::bad_model(format!(
        "{n} of {total} weight files are missing{size}: {}{more}",
        missing.join(", ")
    ))
    .hint("pulling the model again: it resumes where it stopped"))
}

/// The names of the files in `folder`, sorted.
fn list(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// The files `stem-0000x-of-0000n.safetensors`, if there are any.
fn numbered(names: &[String], stem: &str) -> Option<Copy> {
    let number = |name: &String| parse_number(name.strip_prefix(stem)?);
    let (_, count) = names.iter().find_map(number)?;
    Some(Copy::Numbered(
        names.iter().filter(|name| number(name).is_some()).cloned().collect(),
        count,
    ))
}

/// The numbers of a name that ends with `-00002-of-00003.safetensors`.
fn parse_number(name: &str) -> Option<(u32, u32)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    Some((number.parse().ok()?, count.parse().ok()?))
}

/// Checks that the sorted `names` are numbered from 1 to `count`, all of `count`.
fn check_complete(names: &[String], count: u32) -> Result<()> {
    let found: Vec<_> = names.iter().filter_map(|name| parse_number(name)).collect();
    if found.iter().copied().eq((1..=count).map(|number| (number, count))) {
        return Ok(());
    }
    let n = found.len();
    Err(Error::bad_model(format!(
        "found {n} numbered weight files, expected 00001 to {count:05} of {count:05}"
    ))
    .hint("pulling the model again: it resumes where it stopped"))
}

/// The only `*.safetensors` of a folder without a file of a known name.
fn other_file(folder: &Path, names: &[String]) -> Result<String> {
    let place = folder.display();
    if names.iter().any(|n| n == "adapter_config.json" || n == "adapter_model.safetensors") {
        return Err(Error::not_supported(
            "the folder holds a LoRA adapter (adapter_config.json), not a whole model",
        )
        .at(place)
        .hint("merging the adapter into its base model, and loading the result"));
    }
    let ending = |endings: &[&str]| -> Vec<&str> {
        let ends = |name: &&str| endings.iter().any(|end| name.ends_with(end));
        names.iter().map(String::as_str).filter(ends).collect()
    };
    let expected = "model.safetensors, model.safetensors.index.json or consolidated.safetensors";
    match &ending(&[".safetensors"])[..] {
        [name] => return Ok((*name).to_owned()),
        [] => {}
        some => {
            let some = some.join(", ");
            return Err(Error::bad_model(format!(
                "several weight files, none called {expected}: {some}"
            ))
            .at(place)
            .hint("naming one of them as the model"));
        }
    }
    if let [name, ..] = ending(&[".bin", ".pt", ".pth", ".pkl", ".ckpt"])[..] {
        return Err(Error::not_supported(format!(
            "the weights are only there as a pickle ({name}), expected {expected}"
        ))
        .at(place)
        .so("a pickle can run any program when it is read; it is never loaded")
        .hint("a copy of the model in safetensors"));
    }
    if let [name, ..] = ending(&[".gguf"])[..] {
        return Err(Error::not_supported(format!(
            "the weights are only there as GGUF ({name}), expected {expected}"
        ))
        .at(place)
        .hint("the original model in safetensors"));
    }
    Err(Error::new(ErrorKind::NotFound, format!("no weights: expected {expected}")).at(place))
}

/// The path of the file `name` of `folder`, with its links followed as far as they are allowed.
///
/// A link may point to another name of the same folder, or into the store of the Hugging Face cache
/// (`../../blobs/<hash>`, which may itself be a link into the store that all repositories of the cache share):
/// anything else would open files that the model has no business with.
fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut path = folder.join(name);
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {}
            // What is wrong with any other file is told when it is opened.
            _ => return Ok(path),
        }
        let target = std::fs::read_link(&path).map_err(|e| Error::io(&path, e))?;
        if is_cache_blob(&target) {
            return shared_blob(folder.join(target));
        }
        if target.components().count() != 1 || target.is_absolute() {
            return Err(leads_outside(&path, &target));
        }
        path = folder.join(target);
    }
    Err(Error::bad_model(format!("more than {MAX_LINKS} links lead from this name: a link loop?"))
        .at(folder.join(name).display()))
}

/// The file of a blob: its own, or one of the cache's shared store, `../../blobs/<2 digits>/<hash>`.
fn shared_blob(blob: PathBuf) -> Result<PathBuf> {
    let Ok(target) = std::fs::read_link(&blob) else { return Ok(blob) };
    let file = blob.parent().unwrap_or(Path::new("")).join(&target);
    let is_shared = target.strip_prefix("../../blobs").is_ok_and(|rest| {
        let parts: Vec<&str> = rest.iter().filter_map(|part| part.to_str()).collect();
        matches!(parts[..], [group, hash] if group.len() == 2 && hash.starts_with(group) && is_hash(hash))
    });
    if is_shared && !file.is_symlink() { Ok(file) } else { Err(leads_outside(&blob, &target)) }
}

fn leads_outside(path: &Path, target: &Path) -> Error {
    Error::bad_model(format!(
        "the weight file is a link to {}, outside the model folder",
        target.display()
    ))
    .at(path.display())
    .so("only files of the model folder and of the hub's cache are opened")
    .hint("naming the file itself as the model")
}

/// Whether a link's target is `../../blobs/<hash>`, as the cache of the hub lays it out.
fn is_cache_blob(target: &Path) -> bool {
    let Ok(rest) = target.strip_prefix("../../blobs") else { return false };
    rest.to_str().is_some_and(is_hash)
}

fn is_hash(hash: &str) -> bool {
    (40..=64).contains(&hash.len()) && hash.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_blob_may_lie_in_the_store_that_repositories_share() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        let snapshot = repo.join("snapshots/main");
        let shared = cache.path().join("blobs/ab");
        for folder in [&snapshot, &repo.join("blobs"), &shared] {
            fs::create_dir_all(folder).unwrap();
        }
        let (etag, xet) = ("0".repeat(64), format!("ab{}", "1".repeat(62)));
        fs::write(shared.join(&xet), "weights").unwrap();
        symlink(format!("../../blobs/{etag}"), snapshot.join("model.safetensors")).unwrap();
        let blob = repo.join("blobs").join(&etag);
        symlink(format!("../../blobs/ab/{xet}"), &blob).unwrap();
        let found = inside(&snapshot, "model.safetensors").unwrap();
        assert_eq!(fs::read_to_string(found).unwrap(), "weights");

        let absolute = shared.join(&xet).display().to_string();
        for target in [&*absolute, "../../blobs/cd/x", "../../../x", "/etc/passwd"] {
            fs::remove_file(&blob).unwrap();
            symlink(target, &blob).unwrap();
            let error = inside(&snapshot, "model.safetensors").unwrap_err().to_string();
            assert!(error.contains("outside the model folder"), "{target}: {error}");
        }
    }
}
