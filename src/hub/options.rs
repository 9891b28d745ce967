//! Where the hub is, where its files are kept, and who asks.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The secret that opens gated and private models. It is never shown: not by `Debug`, not in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, unless the text is blank. White space and line ends around it are dropped.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    #[cfg(feature = "hub")]
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where models are if nobody says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// How the hub is reached.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Use what is in the cache and open no connection.
    pub offline: bool,
    /// Sent to the endpoint only, over https or to this machine itself; never to where it redirects.
    pub token: Option<Token>,
    /// The address of the hub, without a slash at the end.
    pub endpoint: String,
    /// The cache folder; `None` if it is not known where the user's files are.
    pub cache: Option<PathBuf>,
    /// Let a snapshot's files be links into the cache's store; without, they are hard links or copies.
    pub symlinks: bool,
    /// Fetch the weights too. Without, only configuration, tokenizer and templates are looked for.
    pub weights: bool,
    /// Read the files that are already there, and fetch again what has not the right content.
    pub force: bool,
    /// How long the server may be silent before the connection is given up.
    pub idle: Duration,
    /// How long it is tried without one more mebibyte (or the end of the file) coming in.
    pub patience: Duration,
    /// The first pause after a fault; it doubles with each further one.
    pub first_delay: Duration,
}

/// The options that the environment gives: see [`HubOptions::from_env`].
impl Default for HubOptions {
    fn default() -> Self {
        Self::from_env()
    }
}

impl HubOptions {
    /// Options that do not depend on the environment: no token, and nothing forbidden.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, cache: Option<PathBuf>) -> Self {
        Self {
            offline: false,
            token: None,
            endpoint: endpoint.into(),
            cache,
            symlinks: true,
            weights: true,
            force: false,
            idle: Duration::from_secs(20),
            patience: Duration::from_secs(120),
            first_delay: Duration::from_millis(500),
        }
    }

    /// The options that the environment gives, under the names that all Hugging Face tools use.
    ///
    /// - `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`;
    /// - `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `$HF_HOME/token`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set;
    /// - `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`), `HF_ENDPOINT`, `HF_HUB_DISABLE_SYMLINKS`;
    /// - `HF_HUB_DOWNLOAD_TIMEOUT`: the seconds that the server may be silent.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Self {
        let text = |name: &str| {
            let value = variable(name)?.into_string().ok()?;
            (!value.trim().is_empty()).then_some(value)
        };
        let on = |name: &str| {
            text(name).is_some_and(|value| {
                matches!(value.trim().to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
            })
        };
        let user = user.filter(|path| !path.as_os_str().is_empty());
        let folder = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some(below_user(Path::new(&value), user.as_deref()))
        };
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user.as_ref()?.join(".cache").join("huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = || {
            let path = folder("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            Token::new(&std::fs::read_to_string(path).ok()?)
        };
        let implicit = || if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token_file() };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let plain = Self::new(endpoint.trim().trim_end_matches('/'), cache);
        Self {
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            token: text("HF_TOKEN")
                .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
                .and_then(|token| Token::new(&token))
                .or_else(implicit),
            symlinks: !on("HF_HUB_DISABLE_SYMLINKS"),
            idle: text("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|seconds| seconds.trim().parse().ok())
                .filter(|seconds| *seconds > 0)
                .map_or(plain.idle, Duration::from_secs),
            ..plain
        }
    }
}

/// `path` with a `~` at its beginning replaced by the user's folder.
fn below_user(path: &Path, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        (Ok(_) | Err(_), _) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> HubOptions {
        let variable = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        };
        HubOptions::from_variables(&variable, Some(PathBuf::from("/home/marie")))
    }

    #[test]
    fn the_cache_is_where_the_other_tools_have_it() {
        for (variables, expected) in [
            (&[][..], "/home/marie/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "~/modèles à moi")], "/home/marie/modèles à moi/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "")], "/home/marie/.cache/huggingface/hub"),
        ] {
            assert_eq!(read(variables).cache.unwrap(), Path::new(expected), "{variables:?}");
        }
        assert_eq!(HubOptions::from_variables(&|_| None, None).cache, None);
    }

    #[test]
    fn switches_are_read_as_the_other_tools_read_them() {
        for (value, expected) in
            [("1", true), ("true", true), ("YES", true), ("0", false), ("", false)]
        {
            assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value}");
        }
        assert_eq!(read(&[("HF_ENDPOINT", "https://mirror/")]).endpoint, "https://mirror");
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).idle, Duration::from_secs(3));
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "x")]).idle, read(&[]).idle);
    }

    #[test]
    fn the_token_comes_from_the_variable_then_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).token, None);
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).token, Token::new("hf_file"));
        let both = read(&[("HF_HOME", home), ("HF_TOKEN", " hf_env\r\n")]);
        assert_eq!(both.token, Token::new("hf_env"));
        let none = read(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
    }

    #[test]
    fn a_token_is_never_shown() {
        let options = read(&[("HF_TOKEN", "hf_secret")]);
        assert!(options.token.is_some());
        assert!(!format!("{options:?}").contains("hf_secret"));
    }
}
