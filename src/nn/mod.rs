//! The graph: embed → blocks → norm → head, over the operations of any device.
//!
//! Each part is built once from the checkpoint by [`weight::Loader`] and is immutable afterwards; everything that
//! changes is in the sequence ([`graph::Sequence`]).

pub mod attention;
pub mod block;
pub mod experts;
pub mod graph;
pub mod latent;
pub mod linear;
pub mod mamba;
pub mod mixer;
pub mod mlp;
pub mod position;
pub mod weight;
