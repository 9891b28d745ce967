//! SmolLM3: Llama some of whose layers have no positions.
//!
//! Yang et al. 2025, arXiv:2501.18795: every fourth layer by default, or as `no_rope_layers` lists (1 rotates).

use crate::config::{Config, ConfigError};
use crate::spec::{Architecture, Position};
use crate::{llama, qwen};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut smol = llama::describe(c)?;
    let interval = c.maybe_count("no_rope_layer_interval")?.unwrap_or(4);
    let rotates = match c.value("no_rope_layers").map(|v| v.as_array()) {
        None => (1..=smol.layers.len()).map(|l| l % interval != 0).collect::<Vec<_>>(),
        Some(Some(list)) if list.len() == smol.layers.len() => {
            list.iter().map(|v| v == 1).collect()
        }
        Some(_) => {
            return Err(ConfigError::bad(format!(
                "`no_rope_layers` is not a list of {} numbers, one for each layer",
                smol.layers.len()
            )));
        }
    };
    for (attention, rotates) in smol.attentions_mut().zip(rotates) {
        if !rotates {
            attention.position = Position::None;
        }
    }
    qwen::windows(c, &mut smol)?;
    Ok(smol)
}
