//! What each model family is, as data: no tensors, no arithmetic, no files.
//!
//! [`config::Config`] reads a `config.json` strictly; [`FAMILIES`] maps its architecture name to a function that
//! describes the model as an [`spec::Architecture`], layer by layer; [`names`] tells how the family names its tensors.
#![forbid(unsafe_code)]

pub mod config;

pub use config::ConfigError;
