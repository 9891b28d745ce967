//! One content from the hub into the cache: resumed, checked, and named only when it is whole.
//!
//! Bytes go to `<hash>.incomplete`. What an earlier attempt left there is hashed and then continued with a `Range`
//! request; `If-Range` makes the server begin again if its file is another one by now. A server that ignores the
//! range begins again too, and the file with it. When the last byte is there, its hash is compared, the file is
//! flushed to the disk and renamed. A process that dies at any point leaves a beginning that the next one uses.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::header::{HeaderName, IF_RANGE, RANGE};

use super::api::{self, Hash};
use super::cache::RepoCache;
use super::http::{Answer, Client, Failure, Retry, Subject};
use super::lock;
use super::options::HubOptions;
use super::progress::{Event, Progress};
use super::retry::{Patience, check_cancelled};
use crate::error::{Error, ErrorKind, Result};

/// How much is read at once.
const CHUNK: usize = 256 << 10;
/// How much has to come in for earlier failures to be forgotten.
const WORTH_WAITING: u64 = 1 << 20;

/// A file of a repository whose size and hash are known.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Its path in the repository.
    pub(super) name: String,
    /// Its size in bytes.
    pub(super) size: u64,
    pub(super) hash: Hash,
}

/// What every transfer of one download needs.
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepoCache,
    pub(super) options: &'a HubOptions,
    pub(super) progress: &'a dyn Progress,
    pub(super) repo: &'a str,
    /// The commit that is fetched.
    pub(super) commit: &'a str,
}

impl Session<'_> {
    /// Whether the content is in the cache, by its size; with `force`, by its hash.
    pub(super) fn has(&self, file: &Wanted) -> Result<bool> {
        let blob = self.cache.blob(file.hash.digits());
        // Where links are not possible, other tools keep the content in the snapshot itself.
        let own = self.cache.snapshot(self.commit).join(&file.name);
        for (path, meta) in
            [(&blob, std::fs::metadata(&blob)), (&own, std::fs::symlink_metadata(&own))]
        {
            let right = meta.is_ok_and(|meta| meta.is_file() && meta.len() == file.size);
            if right && (!self.options.force || self.hash_of(path, file)? == file.hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many bytes of `file` an earlier attempt left.
    pub(super) fn left_over(&self, file: &Wanted) -> u64 {
        let path = partial(&self.cache.blob(file.hash.digits()));
        std::fs::metadata(path)
            .map_or(0, |meta| if meta.len() <= file.size { meta.len() } else { 0 })
    }

    /// Brings one content into the cache, and tells how many bytes had to be transferred.
    ///
    /// # Errors
    ///
    /// If it cannot be had, or is not the right one. Its beginning stays unless it is wrong.
    pub(super) fn fetch(&self, file: &Wanted) -> Result<u64> {
        let digits = file.hash.digits();
        let _lock = lock::acquire(&self.cache.lock(digits), &file.name, self.progress)?;
        // Somebody else may have fetched it while this process waited.
        if self.has(file)? {
            self.progress.event(Event::Finished { file: &file.name });
            return Ok(0);
        }
        let mut transfer = Transfer::open(self, file)?;
        let (name, size, position) = (&*file.name, file.size, transfer.position);
        self.progress.event(Event::Started { file: name, size, position });
        transfer.complete(position)?;
        let found = transfer.finish()?;
        if found != file.hash && position > 0 {
            // The part that was left over may be what is wrong: once more, from the start.
            transfer.restart()?;
            transfer.complete(0)?;
            if transfer.finish()? == file.hash {
                return self.keep(&transfer);
            }
        } else if found == file.hash {
            return self.keep(&transfer);
        }
        transfer.discard();
        Err(wrong_content(file, &found))
    }

    /// Gives a finished content its name.
    fn keep(&self, transfer: &Transfer<'_>) -> Result<u64> {
        let blob = self.cache.blob(transfer.wanted.hash.digits());
        std::fs::rename(&transfer.path, &blob).map_err(|e| Error::io(&blob, e))?;
        let _ = std::fs::remove_file(validator_path(&blob));
        // The new name has to survive a power cut too; not every system can flush a folder.
        let _ = File::open(self.cache.blobs()).and_then(|folder| folder.sync_all());
        self.progress.event(Event::Finished { file: &transfer.wanted.name });
        Ok(transfer.received)
    }

    /// The hash of a whole file on the disk, of the kind that `file` is checked by.
    fn hash_of(&self, path: &Path, file: &Wanted) -> Result<Hash> {
        self.progress.event(Event::Checking { file: &file.name, size: file.size });
        let mut content = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut hasher = Hasher::new(&file.hash, file.size);
        self.hash_into(&mut content, path, &mut hasher)?;
        Ok(hasher.finish())
    }

    fn hash_into(&self, content: &mut File, path: &Path, hasher: &mut Hasher) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            check_cancelled(self.progress)?;
            match content.read(&mut chunk).map_err(|e| Error::io(path, e))? {
                0 => return Ok(()),
                n => hasher.update(&chunk[..n]),
            }
        }
    }
}

fn wrong_content(file: &Wanted, found: &Hash) -> Error {
    let what =
        format!("{} has the hash {}, expected {}", file.name, found.digits(), file.hash.digits());
    Error::new(ErrorKind::Network, what)
        .so("it was changed on the way or on the server, and has been removed")
        .hint("pulling again; if it stays so, another network or HF_ENDPOINT")
}

/// Where the content of `blob` is while it is not whole.
fn partial(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

/// Where the server's name for the version that `partial` is part of is kept.
fn validator_path(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete.etag")
}

/// The hash of what has come in so far.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    /// A hasher for a content of `size` bytes, of the same kind as `like`.
    pub(super) fn new(like: &Hash, size: u64) -> Self {
        match like {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::GitSha1(_) => Self::GitSha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Hash {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Self::Sha256(hash) => Hash::Sha256(hex(&hash.finalize())),
            Self::GitSha1(hash) => Hash::GitSha1(hex(&hash.finalize())),
        }
    }
}

/// A content on its way.
struct Transfer<'a> {
    session: &'a Session<'a>,
    wanted: &'a Wanted,
    path: PathBuf,
    file: File,
    /// How many bytes are in the file and in the hash.
    position: u64,
    hasher: Hasher,
    /// What the server calls this version of the content.
    validator: Option<String>,
    /// How many bytes came over the network.
    received: u64,
}

impl<'a> Transfer<'a> {
    /// Opens the partial file, and reads what an earlier attempt left in it.
    fn open(session: &'a Session<'a>, wanted: &'a Wanted) -> Result<Self> {
        let blob = session.cache.blob(wanted.hash.digits());
        let path = partial(&blob);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(&path, e))?;
        let validator = std::fs::read_to_string(validator_path(&blob)).ok();
        let hasher = Hasher::new(&wanted.hash, wanted.size);
        let mut transfer =
            Self { session, wanted, path, file, position: 0, hasher, validator, received: 0 };
        let length = transfer.file.metadata().map_err(|e| Error::io(&transfer.path, e))?.len();
        if length > wanted.size {
            transfer.restart()?;
        } else if length > 0 {
            session.progress.event(Event::Checking { file: &wanted.name, size: length });
            session.hash_into(&mut transfer.file, &transfer.path, &mut transfer.hasher)?;
            transfer.position = length;
        }
        Ok(transfer)
    }

    /// Forgets everything that came in, and begins again.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(&self.path, e))?;
        self.position = 0;
        self.hasher = Hasher::new(&self.wanted.hash, self.wanted.size);
        self.validator = None;
        self.progress();
        Ok(())
    }

    /// Removes what came in.
    fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(validator_path(&self.path));
    }

    fn progress(&self) {
        let (file, position) = (&*self.wanted.name, self.position);
        self.session.progress.event(Event::Advanced { file, position });
    }

    /// Tries until the last byte is there or patience ends. `from` is the position at the start.
    fn complete(&mut self, from: u64) -> Result<()> {
        let mut patience = Patience::new(self.session.options, self.session.progress);
        // The farthest position ever: a server that always breaks at the same byte is no progress.
        let mut farthest = from;
        while self.position < self.wanted.size {
            let Err(failure) = self.attempt() else { continue };
            if self.position >= farthest.saturating_add(WORTH_WAITING) {
                farthest = self.position;
                patience.renew();
            }
            patience.wait(failure, &self.wanted.name)?;
        }
        Ok(())
    }

    /// One request for what is still missing.
    fn attempt(&mut self) -> Result<(), Failure> {
        let Session { client, repo, commit, .. } = *self.session;
        let file = Some(&*self.wanted.name);
        let subject = Subject { repo, revision: commit, file };
        let address = api::file_address(client, repo, commit, &self.wanted.name);
        let mut answer = client.get(&address, &self.range(), subject)?;
        match answer.status.as_u16() {
            206 if self.continues(&answer) => {}
            200 => {
                let length = answer.body.content_length();
                if length.is_some_and(|length| length != self.wanted.size) {
                    return Err(self.wrong_length(&answer.host, length).into());
                }
                // The whole content, wanted or not: what is there would stand twice.
                if self.position > 0 {
                    self.restart()?;
                }
            }
            // Another part than the one that was asked for, or none.
            _ => {
                self.restart()?;
                let what =
                    format!("{} sent another part of the file than was asked for", answer.host);
                return Err(Failure::again(
                    Error::new(ErrorKind::Network, what).at(subject.name()),
                ));
            }
        }
        self.remember_validator(&answer);
        self.read(&mut answer)
    }

    /// The headers that ask for the part that is missing.
    fn range(&self) -> Vec<(HeaderName, String)> {
        if self.position == 0 {
            return Vec::new();
        }
        let mut headers = vec![(RANGE, format!("bytes={}-", self.position))];
        headers.extend(self.validator.clone().map(|validator| (IF_RANGE, validator)));
        headers
    }

    /// Whether a partial answer goes on where the file ends, and is part of a content of the right size.
    fn continues(&self, answer: &Answer) -> bool {
        let Some(range) = answer.header("content-range") else { return false };
        let Some((part, total)) = range.trim_start_matches("bytes ").split_once('/') else {
            return false;
        };
        let begin = part.split('-').next().and_then(|begin| begin.parse().ok());
        begin == Some(self.position) && (total == "*" || total.parse() == Ok(self.wanted.size))
    }

    /// Keeps the server's name for this version, if it is one that `If-Range` may use.
    fn remember_validator(&mut self, answer: &Answer) {
        let strong = answer.header("etag").filter(|tag| tag.starts_with('"') && tag.len() < 500);
        self.validator = strong.map(str::to_owned);
        let path = self.path.with_extension("incomplete.etag");
        // Only a help for the next attempt: the content is checked by its hash whatever is written here.
        let _ = match &self.validator {
            Some(validator) => std::fs::write(path, validator),
            None => std::fs::remove_file(path),
        };
    }

    /// Writes what comes in, until the answer or the file ends.
    fn read(&mut self, answer: &mut Answer) -> Result<(), Failure> {
        self.file.seek(SeekFrom::Start(self.position)).map_err(|e| Error::io(&self.path, e))?;
        let mut body = answer.body.as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            check_cancelled(self.session.progress)?;
            let n = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(self.broke_off(&answer.host, &e.to_string())),
            };
            if self.position + n as u64 > self.wanted.size {
                self.restart()?;
                return Err(self.wrong_length(&answer.host, None).into());
            }
            self.file.write_all(&chunk[..n]).map_err(|e| self.cannot_write(e))?;
            self.hasher.update(&chunk[..n]);
            self.position += n as u64;
            self.received += n as u64;
            self.progress();
        }
        if self.position < self.wanted.size {
            return Err(self.broke_off(&answer.host, "the answer ended early"));
        }
        Ok(())
    }

    /// The hash of the whole content, once it is on the disk.
    fn finish(&mut self) -> Result<Hash> {
        self.file.sync_all().map_err(|e| self.cannot_write(e))?;
        Ok(std::mem::replace(&mut self.hasher, Hasher::new(&self.wanted.hash, self.wanted.size))
            .finish())
    }

    fn cannot_write(&self, e: std::io::Error) -> Error {
        let (there, size) = (self.position, self.wanted.size);
        let error = Error::io(&self.path, e);
        let hint = if error.kind() == ErrorKind::NoSpace {
            "making room, or HF_HOME on another disk; then the download goes on"
        } else {
            "HF_HOME=/a/folder/that/can/be/written"
        };
        error.so(format!("{there} of {size} bytes of {} are there", self.wanted.name)).hint(hint)
    }

    fn broke_off(&self, host: &str, why: &str) -> Failure {
        let (there, size) = (self.position, self.wanted.size);
        let what = format!("{host} broke off after {there} of {size} bytes: {why}");
        let error = Error::new(ErrorKind::Network, what).at(&self.wanted.name);
        Failure { error, retry: Retry::After(None) }
    }

    fn wrong_length(&self, host: &str, length: Option<u64>) -> Error {
        let found = length.map_or("more bytes".to_owned(), |length| format!("{length} bytes"));
        let what = format!("{host} sends {found}, expected {}", self.wanted.size);
        Error::new(ErrorKind::Network, what)
            .at(&self.wanted.name)
            .hint("pulling again; a proxy or a login page may have answered instead")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_hub() {
        // git hash-object and sha256sum of "hello\n".
        for (hash, expected) in [
            (Hash::GitSha1(String::new()), "ce013625030ba8dba906f756967f9e9ca394464a"),
            (
                Hash::Sha256(String::new()),
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            ),
        ] {
            let mut hasher = Hasher::new(&hash, 6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.finish().digits(), expected);
        }
    }

    #[test]
    fn the_unfinished_content_stands_beside_the_finished_one() {
        let blob = Path::new("/c/blobs/0123");
        assert_eq!(partial(blob), Path::new("/c/blobs/0123.incomplete"));
        assert_eq!(validator_path(blob), Path::new("/c/blobs/0123.incomplete.etag"));
        assert_eq!(partial(blob).with_extension("incomplete.etag"), validator_path(blob));
    }
}
