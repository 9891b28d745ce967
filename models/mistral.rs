//! Mistral 7B, Nemo, Small, Codestral, Mathstral, Large 2: Llama whose attention may slide.
//!
//! Jiang et al. 2023, arXiv:2310.06825. 7B v0.1 slides by 4096; later configurations mostly say
//! `"sliding_window": null`, and then nothing slides.

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::spec::Architecture;

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut mistral = llama::describe(c)?;
    let windows = windows(c, mistral.layers.len())?;
    for (attention, window) in mistral.attentions_mut().zip(windows) {
        attention.window = window;
    }
    Ok(mistral)
}

/// The window of each layer: one number for all, or (in Mistral's own files) a list that repeats.
fn windows(c: &Config, n_layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let key = if c.is_native() && c.has("_sliding_window") {
        "_sliding_window"
    } else {
        "sliding_window"
    };
    let Some(list) = c.value(key).and_then(|v| v.as_array()) else {
        return Ok(vec![c.maybe_count(key)?; n_layers]);
    };
    let window = |v: &serde_json::Value| match v.as_u64() {
        _ if v.is_null() => Ok(None),
        Some(n) if n > 0 && n < 1 << 31 => Ok(Some(n as usize)),
        _ => Err(ConfigError::bad(format!(
            "{} holds {v}, expected window sizes or null",
            c.name(key)
        ))),
    };
    let pattern = list.iter().map(window).collect::<Result<Vec<_>, _>>()?;
    if pattern.is_empty() || !n_layers.is_multiple_of(pattern.len()) {
        return Err(ConfigError::bad(format!(
            "{} lists {} windows, expected a number that divides the {n_layers} layers",
            c.name(key),
            pattern.len()
        )));
    }
    Ok(pattern.iter().copied().cycle().take(n_layers).collect())
}
