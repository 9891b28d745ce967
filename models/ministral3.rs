//! Ministral 3, Devstral Small 2, Devstral 2: Mistral with YaRN and queries that are scaled by their position.
//!
//! The scale is that of Llama 4: `1 + beta ln(1 + floor(position / original))`, on the rotated query. It stays 1 up to
//! the original context, so short tests do not see it.

use crate::config::{Config, ConfigError};
use crate::mistral;
use crate::spec::{Architecture, QueryScale};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut ministral = mistral::describe(c)?;
    if let Some(scale) = query_scale(c)? {
        for attention in ministral.attentions_mut() {
            attention.query_scale = Some(scale);
        }
    }
    Ok(ministral)
}

/// The scale of the queries that `rope_parameters` names, unless it is none.
pub(crate) fn query_scale(c: &Config) -> Result<Option<QueryScale>, ConfigError> {
    if c.is_native() {
        return native_query_scale(c);
    }
    let Some(rope) = c.section("rope_parameters")? else { return Ok(None) };
    let beta = rope.maybe_number("llama_4_scaling_beta")?.filter(|beta| *beta != 0.0);
    let Some(beta) = beta else { return Ok(None) };
    let original = rope.count("original_max_position_embeddings")?;
    Ok(Some(QueryScale { beta: beta as f32, original }))
}

/// The same, as Mistral's own `llama_4_scaling`.
fn native_query_scale(c: &Config) -> Result<Option<QueryScale>, ConfigError> {
    let Some(section) = c.section("llama_4_scaling")? else { return Ok(None) };
    let original = section.count("original_max_position_embeddings")?;
    let beta = section.maybe_number("beta")?.filter(|beta| *beta != 0.0);
    section.finish()?;
    Ok(beta.map(|beta| QueryScale { beta: beta as f32, original }))
}
