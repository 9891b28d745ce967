//! Ministral 8B: Mistral whose layers slide or not, each as `layer_types` says.
//!
//! The kinds are those of transformers' `MinistralConfig`; without `layer_types` every layer slides.

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::spec::{Architecture, Mixer};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut ministral = llama::describe(c)?;
    let window = c.maybe_count("sliding_window")?;
    let types = c.maybe_texts("layer_types")?;
    let n_layers = ministral.layers.len();
    if let Some(types) = &types
        && types.len() != n_layers
    {
        return Err(ConfigError::bad(format!(
            "`layer_types` has {} entries, expected one for each of {n_layers} layers",
            types.len()
        )));
    }
    for (l, layer) in ministral.layers.iter_mut().enumerate() {
        let kind = types.as_ref().map_or("sliding_attention", |types| types[l]);
        if let Some(Mixer::Attention(attention)) = &mut layer.mixer {
            attention.window = match kind {
                "sliding_attention" => window,
                "full_attention" => None,
                other => {
                    return Err(ConfigError::unsupported(format!(
                        "`layer_types` says \"{other}\" for layer {l}, which is not among: full_attention, sliding_attention"
                    )));
                }
            };
        }
    }
    Ok(ministral)
}
