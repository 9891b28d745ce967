//! Mamba-2 (Mamba-Codestral 7B): blocks of one norm and one recurrent mixer, nothing else.
//!
//! Dao and Gu 2024, arXiv:2405.21060. The gate stands before the grouped norm. Mamba-Codestral's configuration says
//! `"norm_before_gate": true`, the wrong default of the transformers version that wrote it: neither its training code
//! nor any later reference puts the norm first, so the key is left alone.

use serde_json::{Value, json};

use crate::config::{Config, ConfigError};
use crate::llama;
use crate::names::MAMBA;
use crate::spec::{
    Architecture, Embedding, Head, Layer, Mamba, Mixer, Norm, NormKind, Residual, Stored,
};

/// Wider than any convolution of a Mamba model.
const MAX_CONV: usize = 64;
/// More heads, groups, or elements of either than any Mamba model has.
const MAX_SIZE: usize = 1 << 16;

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let (hidden, vocab) = (c.count("hidden_size")?, vocab(c)?);
    let norm = Norm { kind: NormKind::Rms, eps: eps(c)? };
    let layer = Layer {
        mixer_norm: Some(norm.clone()),
        mixer: Some(Mixer::Mamba(mamba(c, hidden, norm.eps)?)),
        post_mixer_norm: None,
        mlp_norm: None,
        mlp: None,
        post_mlp_norm: None,
        residual: Residual::Sequential,
    };
    c.only("rms_norm", &[json!(true)])?;
    if c.is_native() {
        // How norms and sums were computed together; `pad_vocab_size_multiple` is read with the vocabulary.
        c.ignore(&["fused_add_norm"]);
    }
    // How states were initialised and how a prompt is cut change no number; residuals are always f32.
    c.ignore(&[
        "chunk_size",
        "norm_before_gate",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_rank",
        "time_step_scale",
    ]);
    let n_layers = llama::below(c, "num_hidden_layers", llama::MAX_LAYERS)?;
    Ok(Architecture {
        family: String::new(),
        hidden,
        vocab,
        max_positions: llama::max_positions(c)?,
        embedding: Embedding::default(),
        layers: vec![layer; n_layers],
        final_norm: norm,
        head: Head { tied: c.flag(tie_key(c), false)?, bias: false },
        stored: Stored::plain(&MAMBA),
        bos: c.ids("bos_token_id", vocab)?.first().copied(),
        eos: c.ids("eos_token_id", vocab)?,
    })
}

/// Mistral's own file leaves to the training library's defaults what Hugging Face's configuration spells out.
fn eps(c: &Config) -> Result<f32, ConfigError> {
    let eps = c.maybe_positive("layer_norm_epsilon")?;
    match eps {
        Some(eps) => Ok(eps as f32),
        None if c.is_native() => Ok(1e-5),
        None => Ok(c.positive("layer_norm_epsilon")? as f32),
    }
}

fn tie_key(c: &Config) -> &'static str {
    if c.is_native() { "tie_embeddings" } else { "tie_word_embeddings" }
}

/// Rows of the embedding: the training library rounds them up.
fn vocab(c: &Config) -> Result<usize, ConfigError> {
    let vocab = llama::below(c, "vocab_size", llama::MAX_VOCAB)?;
    let multiple = if c.is_native() { c.maybe_count("pad_vocab_size_multiple")? } else { None };
    match multiple {
        Some(multiple) if multiple > llama::MAX_VOCAB => {
            let name = c.name("pad_vocab_size_multiple");
            Err(ConfigError::bad(format!(
                "{name} is {multiple}, expected at most {}",
                llama::MAX_VOCAB
            )))
        }
        Some(multiple) => Ok(vocab.next_multiple_of(multiple)),
        None => Ok(vocab),
    }
}

/// The mixer of a `params.json`: the defaults of the training library, but for the groups.
fn native_mamba(c: &Config, hidden: usize, eps: f32) -> Result<Mamba, ConfigError> {
    const HEAD_DIM: usize = 64;
    if !(2 * hidden).is_multiple_of(HEAD_DIM) {
        let name = c.name("hidden_size");
        return Err(ConfigError::bad(format!("{name} is {hidden}, expected a multiple of 32")));
    }
    let mamba = Mamba {
        n_heads: 2 * hidden / HEAD_DIM,
        head_dim: HEAD_DIM,
        n_groups: c.count("n_groups")?,
        state_dim: 128,
        conv_width: 4,
        conv_bias: true,
        bias: false,
        step_min: 0.0,
        step_max: f32::INFINITY,
        eps,
    };
    check(c, &mamba, "hidden_size")?;
    Ok(mamba)
}

fn mamba(c: &Config, hidden: usize, eps: f32) -> Result<Mamba, ConfigError> {
    if c.is_native() {
        return native_mamba(c, hidden, eps);
    }
    c.only("hidden_act", &[json!("silu"), json!("swish")])?;
    let (step_min, step_max) = step_limit(c)?;
    let mamba = Mamba {
        n_heads: c.count("num_heads")?,
        head_dim: c.count("head_dim")?,
        n_groups: c.count("n_groups")?,
        state_dim: c.count("state_size")?,
        conv_width: c.count("conv_kernel")?,
        conv_bias: c.flag("use_conv_bias", true)?,
        bias: c.flag("use_bias", false)?,
        step_min,
        step_max,
        eps,
    };
    check(c, &mamba, "num_heads")?;
    let expand = c.positive("expand")?;
    if expand * hidden as f64 != mamba.inner() as f64 {
        return Err(ConfigError::bad(format!(
            "`expand` is {expand}, but `num_heads` times `head_dim` is {} and `hidden_size` {hidden}: the configuration contradicts itself",
            mamba.inner()
        )));
    }
    if let Some(n) = c.maybe_count("intermediate_size")?.filter(|n| *n != mamba.inner()) {
        return Err(ConfigError::bad(format!(
            "`intermediate_size` is {n}, but `num_heads` times `head_dim` is {}: the configuration contradicts itself",
            mamba.inner()
        )));
    }
    Ok(mamba)
}

/// Refuses sizes that do not fit together; `heads` is the key of the number of heads.
pub(crate) fn check(c: &Config, m: &Mamba, heads: &str) -> Result<(), ConfigError> {
    if !m.n_heads.is_multiple_of(m.n_groups) {
        return Err(ConfigError::bad(format!(
            "{} is {}, expected a divisor of {}, which is {}",
            c.name("n_groups"),
            m.n_groups,
            c.name(heads),
            m.n_heads
        )));
    }
    let largest = m.n_heads.max(m.head_dim).max(m.state_dim);
    if largest > MAX_SIZE {
        let name = c.name(heads);
        return Err(ConfigError::bad(format!(
            "{name}, the width of a head or of its state is {largest}, expected at most {MAX_SIZE}"
        )));
    }
    if m.conv_width > MAX_CONV {
        let (name, width) = (c.name("conv_kernel"), m.conv_width);
        return Err(ConfigError::bad(format!("{name} is {width}, expected at most {MAX_CONV}")));
    }
    Ok(())
}

/// The bounds of the time steps: two numbers, of which the second may be infinite.
fn step_limit(c: &Config) -> Result<(f32, f32), ConfigError> {
    let Some(value) = c.value("time_step_limit") else { return Ok((0.0, f32::INFINITY)) };
    let bound = |value: &Value| match value.as_str() {
        Some("Infinity") => Some(f32::INFINITY),
        Some(_) => None,
        // transformers writes an infinite bound as an object where it keeps to the letter of JSON.
        None => match value.get("__float__").and_then(Value::as_str) {
            Some("Infinity") => Some(f32::INFINITY),
            Some(_) => None,
            None => value.as_f64().map(|x| x as f32),
        },
    };
    match value.as_array().map(|bounds| bounds.iter().map(bound).collect::<Vec<_>>()).as_deref() {
        Some([Some(low), Some(high)]) if *low >= 0.0 && low <= high => Ok((*low, *high)),
        _ => Err(ConfigError::bad(
            "`time_step_limit` is not a list of a lower and an upper bound of at least 0",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Result<(f32, f32), ConfigError> {
        step_limit(&Config::parse(&format!("{{\"time_step_limit\": {text}}}")).unwrap())
    }

    #[test]
    fn an_infinite_bound_is_read_in_each_spelling() {
        for text in ["[0.0, Infinity]", "[0.0, {\"__float__\": \"Infinity\"}]", "null"] {
            assert_eq!(limit(text), Ok((0.0, f32::INFINITY)), "{text}");
        }
        assert_eq!(limit("[0.001, 0.1]"), Ok((0.001, 0.1)));
    }

    #[test]
    fn bounds_that_cross_are_refused() {
        for text in ["[0.1, 0.01]", "[-1, 1]", "[0]", "3", "[\"a\", 1]"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
