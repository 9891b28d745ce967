//! A small, fast inference engine for open French language models.
//!
//! # The way of the data
//!
//! text → ids → vectors → blocks → logits → id → text. Each step has its room:
//!
//! 1. [`hub`] finds a model by name: built in, a folder, the cache, a download; [`files`] reads its small files.
//! 2. [`checkpoint`] maps the weights; [`tramontane_models`] describes the architecture as data.
//! 3. [`model`] puts them together: [`nn`] is the graph, written once over the operations of [`ops`], which each
//!    device implements; the arithmetic is in [`tramontane_kernels`].
//!    [`memory`] tells beforehand what it needs.
//! 4. [`tokenizer`] turns text into ids and back, also a text with a gap, [`chat`] a conversation into a prompt.
//! 5. [`mod@generate`] runs prefill and decode over a [`cache`], and [`sample`] chooses each id.
//! 6. [`eval`] measures perplexity, and how far a format is from another; [`mod@quantize`] packs weights once and for
//!    all; [`mod@verify`] checks a model on disk.
//!
//! # A first text
//!
//! ```
//! use tramontane::sample::Sampling;
//!
//! let model = tramontane::Model::load("", &tramontane::LoadOptions::default())?;
//! let sampling = Sampling { max_tokens: Some(16), ..Sampling::greedy() };
//! for piece in model.session().generate("Il était une fois", &sampling)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), tramontane::Error>(())
//! ```
//!
//! Everything is synchronous; a [`Model`] is `Send + Sync` and cheap to clone, a stream of text owns what it needs.
//!
//! # Determinism
//!
//! For one binary and one instruction set, the same input and seed give the same bits, for any number of threads. It does not
//! matter how a prompt is cut either; on CPUs with AMX, if it is cut at multiples of 32 tokens.
//! Across instruction sets results agree within rounding.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod cache;
pub mod chat;
pub mod checkpoint;
mod device;
pub mod error;
pub mod eval;
pub mod files;
pub mod generate;
pub mod hub;
pub mod memory;
pub mod model;
pub mod nn;
pub mod ops;
mod platform;
pub mod quantize;
pub mod sample;
pub mod tokenizer;
pub mod verify;

pub use cache::KvCache;
pub use device::{DeviceChoice, Placement};
pub use error::{Error, ErrorKind, Result};
pub use generate::{CancelToken, Generator, Piece, Session};
pub use model::{LoadOptions, LoadProgress, Model, ModelInfo};
pub use ops::{Format, KvFormat};
