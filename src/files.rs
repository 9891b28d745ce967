//! A model's files: a folder on disk, or the model that is built in.
//!
//! Everything in a model folder is hostile data: names are bare file names, sizes are checked before
//! anything is read, and only regular files are opened (a FIFO or a device would hang the reader).

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Where the files of one model are.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// The small French model inside the program.
    BuiltIn,
    /// A folder on disk.
    Folder {
        /// The folder that holds `config.json`, the tokenizer and the weights.
        path: PathBuf,
        /// One weight file that was named explicitly; else the loader chooses.
        weights: Option<PathBuf>,
    },
}

/// The largest configuration or template file that is read, in bytes.
pub const MAX_CONFIG: u64 = 16 << 20;
/// The largest tokenizer file that is read, in bytes.
pub const MAX_TOKENIZER: u64 = 256 << 20;

impl ModelFiles {
    /// The files of the folder `path`.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), weights: None }
    }

    /// The content of the file `name`, or `None` if there is no such file.
    ///
    /// `max` is the largest size that makes sense, in bytes.
    ///
    /// # Errors
    ///
    /// If the file is larger than `max`, is not a regular file, or cannot be read.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::BuiltIn => Ok(builtin(name).map(Cow::Borrowed)),
            Self::Folder { path, .. } => Ok(read_file(&path.join(name), max)?.map(Cow::Owned)),
        }
    }

    /// The content of the file `name` as text, a byte order mark removed.
    ///
    /// # Errors
    ///
    /// As [`Self::read`], and if the content is not UTF-8.
    pub fn read_text(&self, name: &str, max: u64) -> Result<Option<String>> {
        let Some(bytes) = self.read(name, max)? else { return Ok(None) };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.trim_start_matches('\u{feff}').to_owned())),
            Err(e) => Err(Error::bad_model(format!(
                "the text is not UTF-8 (first bad byte at {})",
                e.valid_up_to()
            ))
            .at(self.place(name))),
        }
    }

    /// Whether the file `name` exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::BuiltIn => builtin(name).is_some(),
            Self::Folder { path, .. } => path.join(name).exists(),
        }
    }

    /// How an error names the file `name`.
    #[must_use]
    pub fn place(&self, name: &str) -> String {
        match self {
            Self::BuiltIn => format!("{name} of the built-in model"),
            Self::Folder { path, .. } => path.join(name).display().to_string(),
        }
    }
}

/// Reads a regular file of at most `max` bytes; `None` if it does not exist.
fn read_file(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let Some((file, size)) = open_regular(path)? else { return Ok(None) };
    if size > max {
        return Err(Error::bad_model(format!("the file has {size} bytes, expected at most {max}"))
            .at(path.display()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // The file may grow while it is read: `take` keeps the promise about the size.
    file.take(max).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(Some(bytes))
}

/// Opens a regular file and tells its size in bytes; `None` if it does not exist.
///
/// # Errors
///
/// If `path` is a folder, a FIFO, a device or a link loop, or cannot be opened.
pub fn open_regular(path: &Path) -> Result<Option<(File, u64)>> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(path, e)),
    };
    if !meta.is_file() {
        let found = if meta.is_dir() { "a folder" } else { "not a regular file" };
        return Err(Error::bad_model(format!("found {found}, expected a file")).at(path.display()));
    }
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    Ok(Some((file, meta.len())))
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::new(ErrorKind::BadModel, format!("the file cannot be read: {e}"))
        .at(path.display())
        .caused_by(e)
}

#[cfg(feature = "embedded")]
fn builtin(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "config.json" => include_bytes!("../models/brise/config.json"),
        "generation_config.json" => include_bytes!("../models/brise/generation_config.json"),
        "tokenizer.json" => include_bytes!("../models/brise/tokenizer.json"),
        "model.safetensors" => &WEIGHTS.0,
        _ => return None,
    })
}

/// Bytes that begin at a multiple of 64, as the first byte of a mapped file does: numbers are read where they are.
#[cfg(feature = "embedded")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

#[cfg(feature = "embedded")]
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/brise/model.safetensors"));

#[cfg(not(feature = "embedded"))]
fn builtin(_name: &str) -> Option<&'static [u8]> {
    None
}
