//! GPT-2 (gpt-fr): learned positions, biases everywhere, projections stored transposed.
//!
//! Radford et al. 2019. The frame of the older families that share its block is here too.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::llama::{self, MAX_LAYERS, MAX_VOCAB};
use crate::names::GPT2;
use crate::spec::{
    Activation, Architecture, Attention, Dense, Embedding, Head, Layer, Mixer, Mlp, Norm, NormKind,
    Position, Qkv, Residual, Stored,
};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    c.only("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    c.only("scale_attn_weights", &[json!(true)])?;
    c.only("add_cross_attention", &[json!(false)])?;
    ignore_heads_of_other_tasks(c);
    let shape = Shape::read(c, "n_embd", "n_layer", "n_head")?;
    let norm = norm(c)?;
    let positions = c.count("n_positions")?;
    let attention = Attention { qkv_bias: true, o_bias: true, ..shape.attention(Position::None) };
    let inner = c.maybe_count("n_inner")?.unwrap_or(4 * shape.hidden);
    let mlp = shape.mlp(inner, llama::activation(c, "activation_function")?, true);
    let mut gpt2 = shape.architecture(c, &norm, attention, mlp, Residual::Sequential)?;
    gpt2.max_positions = Some(positions);
    gpt2.embedding.learned_positions = Some(positions);
    gpt2.stored = Stored { qkv: Qkv::Joined, transposed: true, ..Stored::plain(&GPT2) };
    Ok(gpt2)
}

/// Marks the keys of GPT-2's classification heads, and of how attention is evaluated, as understood.
pub(crate) fn ignore_heads_of_other_tasks(c: &Config) {
    c.ignore(&[
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "reorder_and_upcast_attn",
        "n_ctx",
        "gradient_checkpointing",
        "scale_attn_weights",
    ]);
}

/// A LayerNorm with bias, whose epsilon is `layer_norm_epsilon`.
pub(crate) fn norm(c: &Config) -> Result<Norm, ConfigError> {
    let eps = c.positive("layer_norm_epsilon")? as f32;
    Ok(Norm { kind: NormKind::Layer { bias: true, minus_one: false }, eps })
}

/// The counts and widths that every model has.
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) vocab: usize,
}

impl Shape {
    /// Reads them by the names that this family gives them.
    pub(crate) fn read(
        c: &Config,
        hidden: &str,
        n_layers: &str,
        n_heads: &str,
    ) -> Result<Self, ConfigError> {
        let shape = Self {
            hidden: c.count(hidden)?,
            n_layers: llama::below(c, n_layers, MAX_LAYERS)?,
            n_heads: c.count(n_heads)?,
            vocab: llama::below(c, "vocab_size", MAX_VOCAB)?,
        };
        if !shape.hidden.is_multiple_of(shape.n_heads) {
            return Err(ConfigError::bad(format!(
                "{} is {}, expected a divisor of {}, which is {}",
                c.name(n_heads),
                shape.n_heads,
                c.name(hidden),
                shape.hidden
            )));
        }
        Ok(shape)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.hidden / self.n_heads
    }

    /// Attention without biases in which each query head has its own key and value.
    pub(crate) fn attention(&self, position: Position) -> Attention {
        Attention {
            n_heads: self.n_heads,
            n_kv_heads: self.n_heads,
            head_dim: self.head_dim(),
            position,
            window: None,
            scale: 1.0 / (self.head_dim() as f32).sqrt(),
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
            query_scale: None,
        }
    }

    /// An MLP of two matrices.
    pub(crate) fn mlp(&self, inner: usize, activation: Activation, bias: bool) -> Mlp {
        Mlp::Plain(Dense { inner, activation, bias })
    }

    /// A model of equal layers with a tied head, unless the configuration says otherwise.
    pub(crate) fn architecture(
        &self,
        c: &Config,
        norm: &Norm,
        attention: Attention,
        mlp: Mlp,
        residual: Residual,
    ) -> Result<Architecture, ConfigError> {
        let own_mlp_norm = residual != Residual::ParallelSharedNorm;
        let layer = Layer {
            mixer_norm: Some(norm.clone()),
            mixer: Some(Mixer::Attention(attention)),
            post_mixer_norm: None,
            mlp_norm: own_mlp_norm.then(|| norm.clone()),
            mlp: Some(mlp),
            post_mlp_norm: None,
            residual,
        };
        Ok(Architecture {
            family: String::new(),
            hidden: self.hidden,
            vocab: self.vocab,
            max_positions: None,
            embedding: Embedding::default(),
            layers: vec![layer; self.n_layers],
            final_norm: norm.clone(),
            head: Head { tied: c.flag("tie_word_embeddings", true)?, bias: false },
            stored: Stored::plain(&GPT2),
            bos: c.ids("bos_token_id", self.vocab)?.first().copied(),
            eos: c.ids("eos_token_id", self.vocab)?,
        })
    }
}
