//! A small, fast inference engine for open French language models.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod chat;
pub mod checkpoint;
pub mod error;
pub mod files;
pub mod hub;
pub mod sample;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
