//! Ministral 8B: Mistral whose layers slide or not, each as `layer_types` says.
//!
//! The kinds are those of transformers' `MinistralConfig`; without `layer_types` every layer slides.

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::spec::Architecture;

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut ministral = llama::describe(c)?;
    windows(c, &mut ministral)?;
    Ok(ministral)
}

/// Lets the layers slide that `layer_types` says do.
pub(crate) fn windows(c: &Config, model: &mut Architecture) -> Result<(), ConfigError> {
    let window = c.maybe_count("sliding_window")?;
    let n_layers = model.layers.len();
    let types =
        c.maybe_texts("layer_types")?.unwrap_or_else(|| vec!["sliding_attention"; n_layers]);
    if types.len() != n_layers {
        return Err(ConfigError::bad(format!(
            "`layer_types` has {} entries, expected one for each of {n_layers} layers",
            types.len()
        )));
    }
    for (attention, kind) in model.attentions_mut().zip(types) {
        attention.window = match kind {
            "sliding_attention" => window,
            "full_attention" => None,
            other => {
                return Err(ConfigError::unsupported(format!(
                    "`layer_types` holds \"{other}\", which is not among: full_attention, sliding_attention"
                )));
            }
        };
    }
    Ok(())
}
