//! model name → files: built in, a folder, the hub's cache, a download.
//!
//! [`ModelRef::parse`] reads what the user wrote, [`resolve`] finds the files, [`pull`] fetches them. This is the
//! only part of the crate that opens a socket, and only with the feature `hub`. Files lie in the cache that all
//! Hugging Face tools share, in their layout: what Python has downloaded is found here, and the other way round.
//!
//! What comes from the hub is hostile until checked: names of files are chosen from a short list of shapes,
//! contents are compared with their hashes, and the token goes to the hub's own address only.

#[cfg(feature = "hub")]
mod address;
#[cfg(feature = "hub")]
mod api;
#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod check;
#[cfg(feature = "hub")]
mod choose;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod lock;
mod names;
mod options;
mod progress;
#[cfg(feature = "hub")]
mod resolve;
#[cfg(feature = "hub")]
mod retry;

use std::fmt;
use std::path::{Path, PathBuf};

use tramontane_models::catalogue;

use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;

#[cfg(feature = "hub")]
pub use cache::{CachedModel, list_cached};
#[cfg(feature = "hub")]
pub use check::{CheckedFile, check_files};
pub use options::{HubOptions, Token};
pub use progress::{Event, Progress};
#[cfg(feature = "hub")]
pub use resolve::{Pulled, PulledFile, pull};

/// The name of the built-in model.
pub const BUILT_IN: &str = "brise";
/// The revision that is meant when none is named.
pub const DEFAULT_REVISION: &str = "main";

/// What a MODEL argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// The small French model inside the program.
    BuiltIn,
    /// A folder with a model's files.
    Folder(PathBuf),
    /// A weight file, or an index of weight files, beside its `config.json`.
    File(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, a tag or a commit.
        revision: String,
    },
}

impl ModelRef {
    /// Reads a MODEL argument; no text means the built-in model.
    ///
    /// A path that exists comes before a name on the hub.
    ///
    /// ```
    /// use tramontane::hub::ModelRef;
    /// assert_eq!(ModelRef::parse(None)?, ModelRef::BuiltIn);
    /// let hub = ModelRef::parse(Some("mistralai/Mistral-7B-v0.1@refs/pr/3"))?;
    /// let (repo, revision) = ("mistralai/Mistral-7B-v0.1".into(), "refs/pr/3".into());
    /// assert_eq!(hub, ModelRef::Hub { repo, revision });
    /// assert!(ModelRef::parse(Some("../no/such/folder")).is_err());
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the text is a path where nothing is, a file that holds no weights, or no possible name.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = match text.map(str::trim) {
            None | Some("" | BUILT_IN) => return Ok(Self::BuiltIn),
            Some(text) => text,
        };
        let path = Path::new(text);
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Self::Folder(path.to_owned())),
            Ok(_) => weight_file(path),
            Err(_) if looks_like_a_path(text) => {
                Err(Error::new(ErrorKind::NotFound, "no such file or folder")
                    .at(text)
                    .hint("a folder with config.json and *.safetensors, or org/name on the hub"))
            }
            Err(_) => {
                let (repo, revision) = parse_name(text)?;
                Ok(Self::Hub { repo, revision })
            }
        }
    }

    /// The same model at another revision.
    ///
    /// # Errors
    ///
    /// If the model is not on the hub, or `revision` cannot be the name of a revision.
    pub fn with_revision(self, revision: &str) -> Result<Self> {
        match self {
            Self::Hub { repo, .. } => {
                names::check_revision(revision)?;
                Ok(Self::Hub { repo, revision: revision.to_owned() })
            }
            Self::BuiltIn | Self::Folder(_) | Self::File(_) => Err(Error::bad_input(format!(
                "`{self}` has no revisions: only models on the hub (org/name) do"
            ))),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str(BUILT_IN),
            Self::Folder(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, revision } if revision == DEFAULT_REVISION => f.write_str(repo),
            Self::Hub { repo, revision } => write!(f, "{repo}@{revision}"),
        }
    }
}

/// Finds the files of a model, and downloads what is missing unless that is forbidden.
///
/// A model of the hub whose files are all in the cache is used as it is, without asking the hub whether there is
/// something newer: `pull` asks.
///
/// # Errors
///
/// If there is no such model, or it is not complete and cannot be fetched.
pub fn resolve(
    model: &ModelRef,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<ModelFiles> {
    match model {
        ModelRef::BuiltIn if ModelFiles::BuiltIn.has("config.json") => Ok(ModelFiles::BuiltIn),
        ModelRef::BuiltIn => Err(Error::new(
            ErrorKind::NotFound,
            "this program was built without the built-in model",
        )
        .hint("naming a model: a folder, or org/name on the hub")),
        ModelRef::Folder(path) => Ok(ModelFiles::folder(path)),
        ModelRef::File(path) => {
            let folder = match path.parent() {
                Some(folder) if folder != Path::new("") => folder,
                Some(_) | None => Path::new("."),
            };
            Ok(ModelFiles::Folder { path: folder.to_owned(), weights: Some(path.clone()) })
        }
        #[cfg(feature = "hub")]
        ModelRef::Hub { repo, revision } => resolve::on_the_hub(repo, revision, options, progress),
        #[cfg(not(feature = "hub"))]
        ModelRef::Hub { repo, .. } => {
            let _ = (options, progress);
            Err(Error::not_supported(format!(
                "`{repo}` is a model on the hub, and this program was built without downloads"
            ))
            .hint("naming a folder that holds the model's files"))
        }
    }
}

/// The path of weights: `*.safetensors`, or the index of several.
fn weight_file(path: &Path) -> Result<ModelRef> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
        return Ok(ModelRef::File(path.to_owned()));
    }
    let found = match path.extension().and_then(|e| e.to_str()) {
        Some("gguf") => "a GGUF file",
        Some("bin" | "pt" | "pth" | "pkl" | "ckpt") => "a pickle, which could run any program",
        Some(_) | None => "a file",
    };
    Err(Error::not_supported(format!("found {found}, expected a folder or *.safetensors"))
        .at(path.display()))
}

/// Whether only a path can be meant, so that nothing of this name is looked for on the hub.
fn looks_like_a_path(text: &str) -> bool {
    text.starts_with(['.', '/', '~'])
        || text.contains('\\')
        || text.ends_with('/')
        || text.ends_with(".safetensors")
        || text.ends_with(".json")
        || Path::new(text).is_absolute()
}

/// What to write instead of `name`, which is neither a folder nor in the catalogue.
fn similar_names(name: &str) -> String {
    let name = name.to_lowercase();
    let stem = name.split(['-', '_', ':']).next().filter(|stem| stem.len() > 2);
    let close = |short: &&str| stem.is_some_and(|stem| short.contains(stem));
    let close: Vec<&str> =
        catalogue::entries().iter().map(|entry| &*entry.name).filter(close).take(4).collect();
    let org_name =
        "org/name for a model on the hub, such as mistralai/Ministral-3-3B-Instruct-2512";
    match &close[..] {
        [] => format!("{org_name}, or a short name (tramontane list --catalogue)"),
        names => format!("{} (tramontane list --catalogue), or {org_name}", names.join(", ")),
    }
}

/// Reads the name of a model on the hub, `org/name[@revision]` or a short name of the
/// [catalogue] with or without a revision: the repository and the revision.
///
/// # Errors
///
/// If the text cannot be such a name.
pub fn parse_name(text: &str) -> Result<(String, String)> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
    names::check_revision(revision)?;
    if let Some(entry) = catalogue::by_name(repo) {
        return Ok((entry.repository.clone(), revision.to_owned()));
    }
    if repo == BUILT_IN {
        return Err(Error::bad_input(format!("`{BUILT_IN}` is built in, not on the hub")));
    }
    if !repo.contains('/') {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no model is called `{text}`, and there is no folder of that name"),
        )
        .hint(similar_names(repo)));
    }
    names::check_repo(repo)?;
    Ok((repo.to_owned(), revision.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: &str) -> ModelRef {
        ModelRef::Hub { repo: repo.into(), revision: revision.into() }
    }

    #[test]
    fn names_paths_and_nothing_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        std::fs::write(&weights, "").unwrap();
        let parse = |text: &str| ModelRef::parse(Some(text)).unwrap();
        assert_eq!(parse(""), ModelRef::BuiltIn);
        assert_eq!(parse("brise"), ModelRef::BuiltIn);
        assert_eq!(
            parse(folder.path().to_str().unwrap()),
            ModelRef::Folder(folder.path().to_owned())
        );
        assert_eq!(parse(weights.to_str().unwrap()), ModelRef::File(weights));
        assert_eq!(parse("a/b"), hub("a/b", "main"));
        assert_eq!(parse("a/b@v1.0"), hub("a/b", "v1.0"));
    }

    #[test]
    fn short_names_of_the_catalogue_stand_for_repositories() {
        let lucie = "OpenLLM-France/Lucie-7B-Instruct-v1.1";
        assert_eq!(ModelRef::parse(Some("lucie-7b")).unwrap(), hub(lucie, "main"));
        assert_eq!(ModelRef::parse(Some("Lucie-7B@v2")).unwrap(), hub(lucie, "v2"));
        let error = ModelRef::parse(Some("lucie-70b")).unwrap_err().to_string();
        assert!(error.contains("lucie-7b-base, lucie-7b-v1"), "{error}");
    }

    #[test]
    fn impossible_names_are_refused_with_their_reason() {
        for (text, kind) in [
            ("../../no/such/folder", ErrorKind::NotFound),
            ("/no/such/folder", ErrorKind::NotFound),
            ("./model.safetensors", ErrorKind::NotFound),
            ("nothing", ErrorKind::NotFound),
            ("..%2f..%2fetc/x", ErrorKind::NotFound),
            ("a%2f..%2fetc/x", ErrorKind::BadInput),
            ("a/../b", ErrorKind::BadInput),
            ("a/b/c", ErrorKind::BadInput),
            ("a/b@../../x", ErrorKind::BadInput),
            ("a/b@", ErrorKind::BadInput),
            ("a/b c", ErrorKind::BadInput),
        ] {
            let error = ModelRef::parse(Some(text)).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_safetensors_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (name, word) in [("a.gguf", "GGUF"), ("a.bin", "pickle"), ("a.txt", "expected")] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            let error = ModelRef::parse(path.to_str()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn only_models_of_the_hub_have_revisions() {
        assert_eq!(hub("a/b", "main").with_revision("v2").unwrap(), hub("a/b", "v2"));
        assert!(ModelRef::BuiltIn.with_revision("v2").is_err());
        assert!(hub("a/b", "main").with_revision("../x").is_err());
    }

    #[test]
    fn a_weight_file_brings_its_folder() {
        let model = ModelRef::File("model.safetensors".into());
        let ModelFiles::Folder { path, weights } =
            resolve(&model, &HubOptions::new("https://hub.example", None), &()).unwrap()
        else {
            panic!("expected a folder")
        };
        assert_eq!(path, Path::new("."));
        assert_eq!(weights.as_deref(), Some(Path::new("model.safetensors")));
    }
}
