//! OLMo-2 (Gaperon 24B): norms behind attention and MLP, and over the whole of queries and keys.
//!
//! Team OLMo 2024, arXiv:2501.00656.

use serde_json::Value;

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::names::OLMO2;
use crate::spec::{Architecture, QkNorm, Stored};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    c.only("clip_qkv", &[Value::Null])?;
    let mut olmo = llama::describe(c)?;
    let norm = olmo.final_norm.clone();
    for attention in olmo.attentions_mut() {
        attention.qk_norm = Some(QkNorm::FullWidth(norm.clone()));
    }
    for layer in &mut olmo.layers {
        layer.post_mixer_norm = layer.mixer_norm.take();
        layer.post_mlp_norm = layer.mlp_norm.take();
    }
    olmo.stored = Stored::plain(&OLMO2);
    Ok(olmo)
}
