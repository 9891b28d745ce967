//! GPT-J (Cedille's fr-boris): attention and MLP in parallel behind one norm, neighbours rotated in part of each head.
//!
//! Wang and Komatsuzaki 2021. The head has a bias.

use crate::config::{Config, ConfigError};
use crate::gpt2::{self, Shape};
use crate::llama;
use crate::names::GPTJ;
use crate::rope;
use crate::spec::{Architecture, Head, Position, Residual, RopeStyle, Stored};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    gpt2::ignore_heads_of_other_tasks(c);
    let shape = Shape::read(c, "n_embd", "n_layer", "n_head")?;
    let norm = gpt2::norm(c)?;
    let rotary_dim = c.count("rotary_dim")?;
    if rotary_dim > shape.head_dim() {
        return Err(ConfigError::bad(format!(
            "`rotary_dim` is {rotary_dim}, expected at most {}",
            shape.head_dim()
        )));
    }
    let attention =
        shape.attention(Position::Rope(rope::plain(rotary_dim, RopeStyle::Interleaved)?));
    let inner = c.maybe_count("n_inner")?.unwrap_or(4 * shape.hidden);
    let mlp = shape.mlp(inner, llama::activation(c, "activation_function")?, true);
    let mut gptj = shape.architecture(c, &norm, attention, mlp, Residual::ParallelSharedNorm)?;
    gptj.max_positions = c.maybe_count("n_positions")?;
    gptj.head = Head { tied: c.flag("tie_word_embeddings", false)?, bias: true };
    gptj.stored = Stored::plain(&GPTJ);
    Ok(gptj)
}
