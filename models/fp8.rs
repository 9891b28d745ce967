//! `quantization_config`: which quantised checkpoints can be read.
//!
//! Weights in 8-bit floats come with scales: one for a whole matrix, or one for each block of it. Everything else that
//! a checkpoint may be quantised with is refused by name.

use serde_json::json;

use crate::config::{Config, ConfigError};

/// Rows and columns that share a scale; `None` where a matrix has one scale, or nothing is quantised.
pub(crate) fn block(c: &Config) -> Result<Option<[usize; 2]>, ConfigError> {
    let native = c.section("quantization")?.is_some() && c.is_native();
    let Some(q) = c.section("quantization_config")? else {
        return if native { native_block(c) } else { Ok(None) };
    };
    let method = q.maybe_text("quant_method")?.unwrap_or("without a name");
    if method != "fp8" {
        return Err(ConfigError::unsupported(format!(
            "`quantization_config.quant_method` is \"{method}\", which is not implemented (only fp8); \
             take the original 16-bit weights"
        )));
    }
    q.only("fmt", &[json!("e4m3"), json!("float8_e4m3fn")])?;
    // Activations are not quantised, so how they would be does not matter; each tensor's dtype tells the rest.
    q.ignore(&[
        "activation_scheme",
        "modules_to_not_convert",
        "ignored_layers",
        "dequantize",
        "scale_fmt",
    ]);
    let block = match q.value("weight_block_size").map(|v| v.as_array().map(Vec::as_slice)) {
        None => None,
        Some(Some([rows, cols])) => match (rows.as_u64(), cols.as_u64()) {
            (Some(rows @ 1..=65_536), Some(cols @ 1..=65_536)) => {
                Some([rows as usize, cols as usize])
            }
            _ => return Err(bad_block(&q)),
        },
        Some(_) => return Err(bad_block(&q)),
    };
    q.finish()?;
    Ok(block)
}

/// Mistral's own files name the format, and have one scale for each matrix.
fn native_block(c: &Config) -> Result<Option<[usize; 2]>, ConfigError> {
    let Some(q) = c.section("quantization")? else { return Ok(None) };
    q.only("qformat_weight", &[json!("fp8_e4m3")])?;
    q.ignore(&["qscheme_act"]);
    q.finish()?;
    Ok(None)
}

fn bad_block(q: &Config) -> ConfigError {
    ConfigError::bad(format!("{} is not a list of two counts", q.name("weight_block_size")))
}
