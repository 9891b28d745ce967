//! Whether the files of a model in the cache still have the contents whose hashes they are called by.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::api::Hash;
use super::cache;
use super::download::Hasher;
use crate::error::{Error, Result};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// A file of a model, compared with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// Its path in the folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether its content has the hash that it is stored under; `None` where none is known, because the folder is not
    /// that of a cache whose files are links.
    pub right: Option<bool>,
}

/// Reads all files of the model in `folder`, and compares them with their hashes where those are known. `progress` is
/// told how many bytes of how many have been read.
///
/// # Errors
///
/// If a file cannot be read.
pub fn check_files(folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<CheckedFile>> {
    let (mut checked, mut done) = (Vec::new(), 0);
    let files: Vec<_> = cache::files(folder)
        .into_iter()
        .map(|(name, size, digits)| (name, size, digits.as_deref().and_then(Hash::parse)))
        .collect();
    let to_read = files.iter().filter(|(_, _, hash)| hash.is_some()).map(|(_, size, _)| size).sum();
    let mut read = |n: usize| {
        done += n as u64;
        progress(done, to_read);
    };
    for (name, size, expected) in files {
        let right = match expected {
            Some(expected) => {
                Some(hash_of(&folder.join(&name), &expected, size, &mut read)? == expected)
            }
            None => None,
        };
        checked.push(CheckedFile { name, size, right });
    }
    Ok(checked)
}

/// The hash of the file at `path`, of the same kind as `like`; `read` is told of each piece.
fn hash_of(path: &Path, like: &Hash, size: u64, read: &mut dyn FnMut(usize)) -> Result<Hash> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = Hasher::new(like, size);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(|e| Error::io(path, e))? {
            0 => return Ok(hasher.finish()),
            n => {
                hasher.update(&chunk[..n]);
                read(n);
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_with_the_names_of_their_blobs() {
        let folder = tempfile::tempdir().unwrap();
        // The sha256 of "bonjour", and git's sha1 of "hello\n".
        let blobs = [
            ("2cb4b1431b84ec15d35ed83bb927e27e8967d75f4bcd9cc4b25c8d879ae23e18", "bonjour"),
            ("ce013625030ba8dba906f756967f9e9ca394464a", "hello\n"),
        ];
        for (i, (hash, content)) in blobs.iter().enumerate() {
            let blob = folder.path().join("blobs").join(hash);
            std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
            std::fs::write(&blob, content).unwrap();
            std::fs::create_dir_all(folder.path().join("s")).unwrap();
            std::os::unix::fs::symlink(&blob, folder.path().join(format!("s/file{i}"))).unwrap();
        }
        let snapshot = folder.path().join("s");
        std::fs::write(snapshot.join("own"), "x").unwrap();
        let rights = || -> Vec<Option<bool>> {
            check_files(&snapshot, &mut |_, _| ())
                .unwrap()
                .into_iter()
                .map(|file| file.right)
                .collect()
        };
        assert_eq!(rights(), [Some(true), Some(true), None]);
        std::fs::write(folder.path().join("blobs").join(blobs[0].0), "Bonjour").unwrap();
        assert_eq!(rights(), [Some(false), Some(true), None]);
    }
}
