//! Helium: Llama whose rotary pairs are neighbours.
//!
//! Kyutai 2025. The norms' epsilon is 1e-8, and the output projection is square.

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::spec::{Architecture, Position, RopeStyle};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut helium = llama::describe(c)?;
    for attention in helium.attentions_mut() {
        if let Position::Rope(rope) = &mut attention.position {
            rope.style = RopeStyle::Interleaved;
        }
    }
    Ok(helium)
}
