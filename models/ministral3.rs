//! Ministral 3, Devstral Small 2, Devstral 2: Mistral with YaRN and queries that are scaled by their position.
//!
//! The scale is that of Llama 4: `1 + beta ln(1 + floor(position / original))`, on the rotated query. It stays 1 up to
//! the original context, so short tests do not see it.

use crate::config::{Config, ConfigError};
use crate::mistral;
use crate::spec::{Architecture, QueryScale};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut ministral = mistral::describe(c)?;
    let Some(rope) = c.section("rope_parameters")? else { return Ok(ministral) };
    if let Some(beta) = rope.maybe_number("llama_4_scaling_beta")?.filter(|beta| *beta != 0.0) {
        let scale = QueryScale {
            beta: beta as f32,
            original: rope.count("original_max_position_embeddings")?,
        };
        for attention in ministral.attentions_mut() {
            attention.query_scale = Some(scale);
        }
    }
    Ok(ministral)
}
