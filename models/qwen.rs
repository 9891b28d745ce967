//! Qwen 2 and Qwen 3: Llama with biases, or with norms, on queries and keys (Chocolatine is built on them).
//!
//! Yang et al. 2024, arXiv:2407.10671; 2025, arXiv:2505.09388.

use crate::config::{Config, ConfigError};
use crate::spec::{Architecture, QkNorm};
use crate::{llama, ministral};

/// Qwen 2: biases on the query, key and value projections, none on the output projection.
pub(crate) fn describe_2(c: &Config) -> Result<Architecture, ConfigError> {
    let mut qwen = llama::describe(c)?;
    for attention in qwen.attentions_mut() {
        attention.qkv_bias = true;
        attention.o_bias = false;
    }
    windows(c, &mut qwen)?;
    Ok(qwen)
}

/// Qwen 3: a norm over each query and key head.
pub(crate) fn describe_3(c: &Config) -> Result<Architecture, ConfigError> {
    let mut qwen = llama::describe(c)?;
    let norm = qwen.final_norm.clone();
    for attention in qwen.attentions_mut() {
        attention.qk_norm = Some(QkNorm::PerHead(norm.clone()));
    }
    windows(c, &mut qwen)?;
    Ok(qwen)
}

/// Windows count only where `use_sliding_window` says so; then `layer_types`, or the layers from
/// `max_window_layers` on.
pub(crate) fn windows(c: &Config, model: &mut Architecture) -> Result<(), ConfigError> {
    let first = c.value("max_window_layers").and_then(serde_json::Value::as_u64);
    if !c.flag("use_sliding_window", false)? {
        c.ignore(&["sliding_window", "layer_types"]);
        return Ok(());
    }
    if c.has("layer_types") {
        return ministral::windows(c, model);
    }
    let (window, first) = (c.count("sliding_window")?, first.unwrap_or(0) as usize);
    for attention in model.attentions_mut().skip(first) {
        attention.window = Some(window);
    }
    Ok(())
}
