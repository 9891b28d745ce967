//! What the hub says about a repository: its commit, and the size and hash of each file.

use serde::Deserialize;

use super::address::escape;
use super::http::{Answer, Client, Failure, Subject};
use super::names::is_hex;
use crate::error::{Error, ErrorKind, Result};

/// The longest list of files that is read, in bytes.
const MAX_LIST: u64 = 32 << 20;
/// The most files that a repository may have.
const MAX_FILES: usize = 100_000;

/// One commit of a repository.
#[derive(Debug, Clone)]
pub(super) struct RepoInfo {
    /// The commit, 40 hexadecimal digits.
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) name: String,
    /// Its size in bytes.
    pub(super) size: Option<u64>,
    /// What its content must hash to.
    pub(super) hash: Option<Hash>,
}

/// The hash of a content. Its digits are also the name of the blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// Large files: sha256 of the content.
    Sha256(String),
    /// Small files: sha1 of the content as a git blob, that is with a header that gives its size.
    GitSha1(String),
}

impl Hash {
    /// The hash that `digits` are, by their number.
    pub(super) fn parse(digits: &str) -> Option<Self> {
        if is_hex(digits, 64) {
            Some(Self::Sha256(digits.to_owned()))
        } else if is_hex(digits, 40) {
            Some(Self::GitSha1(digits.to_owned()))
        } else {
            None
        }
    }

    pub(super) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitSha1(digits) => digits,
        }
    }
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for RemoteFile {
    fn from(file: Sibling) -> Self {
        let (hash, size) = match &file.lfs {
            // The size outside may be that of the pointer file that git keeps instead.
            Some(lfs) => (lfs.sha256.as_deref(), lfs.size.or(file.size)),
            None => (file.blob_id.as_deref(), file.size),
        };
        Self { hash: hash.and_then(Hash::parse), size, name: file.rfilename }
    }
}

/// Asks for the commit that a revision is now, and for its files.
pub(super) fn repo_info(client: &Client, subject: Subject<'_>) -> Result<RepoInfo, Failure> {
    let (repo, revision) = (subject.repo, escape(subject.revision));
    let address = client.address(&format!("/api/models/{repo}/revision/{revision}?blobs=true"));
    let Answer { mut body, host, .. } = client.get(&address, &[], subject)?;
    let bytes = body.with_config().limit(MAX_LIST).read_to_vec().map_err(|e| {
        if matches!(e, ureq::Error::BodyExceedsLimit(_)) {
            let what = format!("the list of files is longer than {} MiB", MAX_LIST >> 20);
            return Failure::from(hostile(subject, what).at(&host));
        }
        let what = format!("{host} broke the connection: {e}");
        Failure::again(Error::new(ErrorKind::Network, what).at(subject.name()))
    })?;
    Ok(parse(&bytes, subject).map_err(|e| e.at(&host))?)
}

fn parse(bytes: &[u8], subject: Subject<'_>) -> Result<RepoInfo> {
    let info: Info = serde_json::from_slice(bytes)
        .map_err(|e| strange(subject, format!("the answer is not the expected JSON: {e}")))?;
    let commit = info.sha.unwrap_or_default();
    if !is_hex(&commit, 40) {
        return Err(strange(
            subject,
            format!("the commit is `{commit}`, expected 40 hexadecimal digits"),
        ));
    }
    let files = info.siblings.unwrap_or_default();
    if files.len() > MAX_FILES {
        let what = format!("the list has {} files, expected at most {MAX_FILES}", files.len());
        return Err(hostile(subject, what));
    }
    let mut files: Vec<RemoteFile> = files.into_iter().map(RemoteFile::from).collect();
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    files.dedup_by(|a, b| a.name == b.name);
    if let Some(file) = files.iter().find(|file| leaves_the_folder(&file.name)) {
        let what =
            format!("the list of files names `{}`, which leaves the model folder", file.name);
        return Err(hostile(subject, what));
    }
    Ok(RepoInfo { commit, files })
}

/// Asks for the size and the hash of a file that the list does not tell.
///
/// Some mirrors list names only. The hub's own answer carries both, wherever the content itself may be.
pub(super) fn complete(
    client: &Client,
    commit: &str,
    file: &RemoteFile,
    subject: Subject<'_>,
) -> Result<RemoteFile, Failure> {
    let facts = client.head(&file_address(client, subject.repo, commit, &file.name), subject)?;
    let number = |name: &str| facts.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let tag = |name: &str| {
        let value = facts.get(name)?.to_str().ok()?;
        Hash::parse(value.trim_start_matches("W/").trim_matches('"'))
    };
    let hash = file.hash.clone().or_else(|| tag("x-linked-etag")).or_else(|| tag("etag"));
    // The length of a redirect is the length of its page, not of the file.
    let own_length =
        || if facts.contains_key("location") { None } else { number("content-length") };
    let size = file.size.or_else(|| number("x-linked-size")).or_else(own_length);
    if hash.is_none() || size.is_none() {
        let what = format!("the size or the hash of {} is not told", file.name);
        return Err(strange(subject, what).so("its content could not be checked").into());
    }
    Ok(RemoteFile { name: file.name.clone(), size, hash })
}

/// The address of a file's content.
pub(super) fn file_address(client: &Client, repo: &str, commit: &str, file: &str) -> String {
    let path: Vec<String> = file.split('/').map(escape).collect();
    client.address(&format!("/{repo}/resolve/{commit}/{}", path.join("/")))
}

/// Whether a path of the list could mean something outside the folder it is put in.
fn leaves_the_folder(name: &str) -> bool {
    name.is_empty()
        || name.starts_with('/')
        || name.contains(['\\', '\0'])
        || name.split('/').any(|part| part == "..")
        || name.as_bytes().get(1) == Some(&b':')
}

/// The hub, or what answers in its place, did not answer as it should.
fn strange(subject: Subject<'_>, what: String) -> Error {
    Error::new(ErrorKind::Network, what).at(format!("the hub's answer about {}", subject.repo))
}

/// The repository itself is not one that is fetched.
fn hostile(subject: Subject<'_>, what: String) -> Error {
    Error::bad_model(what).at(subject.repo).so("nothing was fetched")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject<'_> = Subject { repo: "a/b", revision: "main", file: None };
    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn list(siblings: &str) -> Result<RepoInfo> {
        parse(format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#).as_bytes(), SUBJECT)
    }

    #[test]
    fn sizes_and_hashes_are_read_for_large_and_small_files() {
        let sha256 = "a".repeat(64);
        let info = list(&format!(
            r#"{{"rfilename": "w", "size": 130, "blobId": "{COMMIT}", "lfs": {{"sha256": "{sha256}", "size": 9, "pointerSize": 130}}}},
               {{"rfilename": "c", "size": 7, "blobId": "{COMMIT}"}}, {{"rfilename": "x"}}, {{"rfilename": "x"}}"#
        ))
        .unwrap();
        let file = |name: &str, size, hash| RemoteFile { name: name.into(), size, hash };
        assert_eq!(
            info.files,
            [
                file("c", Some(7), Some(Hash::GitSha1(COMMIT.into()))),
                file("w", Some(9), Some(Hash::Sha256(sha256))),
                file("x", None, None),
            ]
        );
    }

    #[test]
    fn hostile_lists_are_refused() {
        for name in ["../evil", "/etc/passwd", "a/../../b", "..", "a\\\\b", "C:x", "", "a\\u0000"] {
            let error = list(&format!(r#"{{"rfilename": "{name}"}}"#)).unwrap_err();
            assert!(error.to_string().contains("leaves the model folder"), "{name}: {error}");
        }
        let many = vec![r#"{"rfilename": "x"}"#; MAX_FILES + 1].join(",");
        assert!(list(&many).unwrap_err().to_string().contains("100001 files"));
        for bad in ["", "[]", "{}", r#"{"sha": "../../x"}"#, r#"{"sha": "0123", "siblings": []}"#] {
            assert!(parse(bad.as_bytes(), SUBJECT).is_err(), "{bad}");
        }
        assert!(parse("[".repeat(100_000).as_bytes(), SUBJECT).is_err());
    }

    #[test]
    fn a_hash_that_is_no_hash_never_names_a_blob() {
        for digits in ["", "../../x", &"A".repeat(64), &"a".repeat(63), &"g".repeat(40)] {
            assert_eq!(Hash::parse(digits), None, "{digits}");
        }
    }
}
