//! Reading a configuration strictly.

use std::fmt;

/// A configuration that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    what: String,
    unsupported: bool,
}

impl ConfigError {
    /// A value that is missing, of the wrong type or out of range.
    pub fn bad(what: impl Into<String>) -> Self {
        Self { what: what.into(), unsupported: false }
    }

    /// A value that is well formed but asks for something that is not implemented.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self { what: what.into(), unsupported: true }
    }

    /// Whether the configuration asks for something that is not implemented.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.unsupported
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ConfigError {}
