//! Model name → files: built in, or a folder.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// What a MODEL argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// The small French model inside the program.
    BuiltIn,
    /// A folder on disk.
    Folder(PathBuf),
}

impl ModelRef {
    /// Reads a MODEL argument; none is the built-in model.
    ///
    /// # Errors
    ///
    /// If there is no such folder.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        match text.map(PathBuf::from) {
            None => Ok(Self::BuiltIn),
            Some(path) if path.is_dir() => Ok(Self::Folder(path)),
            Some(path) => Err(Error::new(crate::ErrorKind::NotFound, "there is no such folder")
                .at(path.display())),
        }
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("brise"),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How the hub is used.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Never use the network.
    pub offline: bool,
}

impl HubOptions {
    /// The options of the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::default()
    }
}

/// Is told how far a download has come.
pub trait Progress: Send + Sync {}

/// Finds the files of a model.
///
/// # Errors
///
/// If there are none.
pub fn resolve(
    model: &ModelRef,
    _options: &HubOptions,
    _progress: &dyn Progress,
) -> Result<ModelFiles> {
    Ok(match model {
        ModelRef::BuiltIn => ModelFiles::BuiltIn,
        ModelRef::Folder(path) => ModelFiles::folder(path),
    })
}
