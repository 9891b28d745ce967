//! What went wrong, for the person who can mend the cause.
//!
//! Every message has the same parts: the subject with what was found and what was expected, the place,
//! what follows from it, and the next step. [`ErrorKind`] groups errors by what the reader can do; the
//! command line takes its exit code from it.

use std::fmt;
use std::path::Path;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the reader of an error can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No model, file or revision of that name: check the name.
    NotFound,
    /// A file of the model is broken or contradicts another: fetch it again, or report it upstream.
    BadModel,
    /// The model asks for something this version does not do: nothing was guessed.
    NotSupported,
    /// A flag, prompt or parameter makes no sense: change it.
    BadInput,
    /// The prompt does not fit the context: shorten it or raise the context size.
    TooLong,
    /// Not enough memory: take a smaller format, context or model.
    NoMemory,
    /// Not enough room on the disk.
    NoSpace,
    /// The network or the hub did not answer as it should.
    Network,
    /// The hub wants a token, or refuses the one it got.
    Denied,
    /// A device that was asked for cannot be had.
    Device,
    /// The chat template refused the conversation, or is itself broken.
    Template,
    /// The model computed something that is not a number.
    Numerics,
    /// The operating system refused a file operation.
    Io,
    /// The caller cancelled.
    Cancelled,
}

impl ErrorKind {
    /// The exit code of the command line for errors of this kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::BadModel | Self::NotSupported | Self::NotFound => 2,
            Self::NoMemory | Self::NoSpace => 3,
            Self::Network | Self::Denied => 4,
            Self::BadInput | Self::TooLong => 64,
            Self::Cancelled => 130,
            Self::Device | Self::Template | Self::Numerics | Self::Io => 1,
        }
    }
}

/// An error of this crate: see the [module](self) for its parts.
///
/// ```
/// use tramontane::{Error, ErrorKind};
/// let e = Error::new(ErrorKind::BadModel, "`lm_head.weight` has 3 rows, expected 4")
///     .at("model.safetensors")
///     .hint("pull the model again");
/// assert_eq!(e.to_string(), "`lm_head.weight` has 3 rows, expected 4\n  in  model.safetensors\n  try pull the model again");
/// ```
#[derive(Debug)]
pub struct Error(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: ErrorKind,
    what: String,
    place: Option<String>,
    so: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error whose subject, found and expected values are told by `what`.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let what = what.into();
        Self(Box::new(Parts { kind, what, place: None, so: None, hint: None, source: None }))
    }

    /// Shorthand for a [`ErrorKind::BadModel`] error.
    pub fn bad_model(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadModel, what)
    }

    /// Shorthand for a [`ErrorKind::NotSupported`] error.
    pub fn not_supported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotSupported, what)
    }

    /// Shorthand for a [`ErrorKind::BadInput`] error.
    pub fn bad_input(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadInput, what)
    }

    /// An error of the operating system about `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the standard library has dozens of kinds and adds more"
        )]
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            std::io::ErrorKind::OutOfMemory => ErrorKind::NoMemory,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("{source}")).at(path.display()).caused_by(source)
    }

    /// Adds the place: a file, a tensor, a key. An earlier place stays, as the inner one.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{inner}, {place}"),
            None => place.to_string(),
        });
        self
    }

    /// Adds what follows from the fault.
    #[must_use]
    pub fn so(mut self, consequence: impl Into<String>) -> Self {
        self.0.so = Some(consequence.into());
        self
    }

    /// Adds the next step for the reader.
    #[must_use]
    pub fn hint(mut self, next_step: impl Into<String>) -> Self {
        self.0.hint = Some(next_step.into());
        self
    }

    /// Keeps the underlying error as [`std::error::Error::source`].
    #[must_use]
    pub fn caused_by(mut self, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(e.into());
        self
    }

    /// The same error without its source, so that two may tell it.
    pub(crate) fn restated(&self) -> Self {
        let Parts { kind, what, place, so, hint, source: _ } = &*self.0;
        let (kind, what) = (*kind, what.clone());
        let (place, so, hint) = (place.clone(), so.clone(), hint.clone());
        Self(Box::new(Parts { kind, what, place, so, hint, source: None }))
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The subject alone, in one line, without place and next step.
    #[must_use]
    pub fn what(&self) -> String {
        printable(&self.0.what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { what, place, so, hint, .. } = &*self.0;
        f.write_str(&printable(what))?;
        for (label, text) in [("in ", place), ("so ", so), ("try", hint)] {
            if let Some(text) = text {
                write!(f, "\n  {label} {}", printable(text))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::new(ErrorKind::BadModel, e.to_string()).caused_by(e)
    }
}

impl From<tramontane_models::ConfigError> for Error {
    fn from(e: tramontane_models::ConfigError) -> Self {
        let kind = if e.is_unsupported() { ErrorKind::NotSupported } else { ErrorKind::BadModel };
        Self::new(kind, e.to_string())
    }
}

/// `text` as a terminal may show it: control characters escaped, long text cut in the middle.
///
/// Names and values from a model's files are hostile: an escape sequence must not reach the terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    const MAX: usize = 2000;
    let mut out = String::with_capacity(text.len().min(MAX) + 16);
    for (i, c) in text.chars().enumerate() {
        if i == MAX {
            out.push('…');
            break;
        }
        let format_control = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || format_control {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_never_reach_the_terminal() {
        let e = Error::bad_model("tensor \u{1b}[31mred\u{202e}").at("a\u{7}b");
        let shown = e.to_string();
        assert!(
            !shown.contains('\u{1b}') && !shown.contains('\u{7}') && !shown.contains('\u{202e}')
        );
        assert!(shown.contains("\\u{1b}[31mred"));
    }

    #[test]
    fn places_read_from_the_inside_out() {
        let e = Error::bad_model("x").at("key `a`").at("config.json");
        assert_eq!(e.to_string(), "x\n  in  key `a`, config.json");
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(ErrorKind::BadModel.exit_code(), 2);
        assert_eq!(ErrorKind::NoMemory.exit_code(), 3);
        assert_eq!(ErrorKind::Network.exit_code(), 4);
        assert_eq!(ErrorKind::BadInput.exit_code(), 64);
        assert_eq!(ErrorKind::Cancelled.exit_code(), 130);
    }
}
