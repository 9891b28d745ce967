//! The layers of a model in a few lines: equal ones together.

use std::fmt;

use serde::Serialize;
use tramontane_models::Architecture;
use tramontane_models::spec::{
    Activation, Attention, Dense, Latent, Layer, Mamba, Mixer, Mlp, NormKind, Position, Residual,
    Rope, RopeScaling, RopeStyle,
};

/// Layers that are alike.
#[derive(Serialize)]
pub(super) struct Group {
    /// How many there are.
    count: usize,
    /// The first of them, counted from 0.
    first: usize,
    /// What mixes positions.
    mixer: String,
    /// How a position enters.
    position: String,
    /// The feed-forward half.
    mlp: String,
    /// The norms, and how the halves meet the residual stream.
    frame: String,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, mixer, position, mlp, frame, .. } = self;
        write!(f, "{count} × {mixer}; {position}; {mlp}; {frame}")
    }
}

/// The kinds of layers, in the order in which they first come.
pub(super) fn groups(architecture: &Architecture) -> Vec<Group> {
    let mut kinds: Vec<(&Layer, usize, usize)> = Vec::new();
    for (i, layer) in architecture.layers.iter().enumerate() {
        match kinds.iter_mut().find(|(kind, ..)| *kind == layer) {
            Some((_, _, count)) => *count += 1,
            None => kinds.push((layer, i, 1)),
        }
    }
    kinds.into_iter().map(|(layer, first, count)| group(layer, first, count)).collect()
}

fn group(layer: &Layer, first: usize, count: usize) -> Group {
    let (mixer, position) = match &layer.mixer {
        Some(Mixer::Attention(a)) => (attention(a), position(&a.position)),
        Some(Mixer::Latent(l)) => (latent(l), rotary(&l.rope)),
        Some(Mixer::Mamba(m)) => (mamba(m), "no position".to_owned()),
        None => ("no mixer".to_owned(), "no position".to_owned()),
    };
    let mlp = layer.mlp.as_ref().map_or_else(|| "no MLP".to_owned(), mlp);
    Group { count, first, mixer, position, mlp, frame: frame(layer) }
}

fn attention(a: &Attention) -> String {
    let mut text = format!("attention with {} heads of {}", a.n_heads, a.head_dim);
    if a.n_kv_heads != a.n_heads {
        text += &format!(", {} key/value heads", a.n_kv_heads);
    }
    if let Some(window) = a.window {
        text += &format!(", window {window}");
    }
    if a.qkv_bias || a.o_bias {
        text += ", biases";
    }
    if a.qk_norm.is_some() {
        text += ", normed queries and keys";
    }
    if a.query_scale.is_some() {
        text += ", queries scaled by position";
    }
    text
}

fn latent(l: &Latent) -> String {
    let heads =
        format!("latent attention with {} heads of {}", l.n_heads, l.nope_dim + l.rope.rotary_dim);
    format!("{heads}, keys and values from {}", l.kv_rank)
}

fn mamba(m: &Mamba) -> String {
    format!("Mamba-2 with {} heads of {}, state of {}", m.n_heads, m.head_dim, m.state_dim)
}

fn position(position: &Position) -> String {
    match position {
        Position::None => "no position".to_owned(),
        Position::Alibi { .. } => "ALiBi".to_owned(),
        Position::Rope(rope) => rotary(rope),
    }
}

fn rotary(rope: &Rope) -> String {
    let style = match rope.style {
        RopeStyle::Halves => "",
        RopeStyle::Interleaved => " of neighbours",
    };
    let scaling = match rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear × {factor}"),
        RopeScaling::Dynamic { factor, .. } => format!(", dynamic × {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!(", llama3 × {factor}"),
        RopeScaling::Yarn { factor, .. } => format!(", yarn × {factor}"),
    };
    format!("rope{style} of {}, theta {}{scaling}", rope.rotary_dim, rope.theta)
}

fn mlp(mlp: &Mlp) -> String {
    match mlp {
        Mlp::Gated(dense) => format!("gated MLP {}", self::dense(dense)),
        Mlp::Plain(dense) => format!("MLP {}", self::dense(dense)),
        Mlp::Experts(e) => format!(
            "{} of {} experts of {} with {}",
            e.n_active,
            e.n_experts,
            e.inner,
            activation(e.activation)
        ),
    }
}

fn dense(dense: &Dense) -> String {
    let bias = if dense.bias { ", biases" } else { "" };
    format!("of {} with {}{bias}", dense.inner, activation(dense.activation))
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "SiLU",
        Activation::Gelu => "GELU",
        Activation::GeluTanh => "GELU (tanh)",
        Activation::Relu => "ReLU",
        Activation::Relu2 => "ReLU²",
    }
}

fn frame(layer: &Layer) -> String {
    let norms = [&layer.mixer_norm, &layer.post_mixer_norm, &layer.mlp_norm, &layer.post_mlp_norm];
    let norm = match norms.into_iter().flatten().next().map(|norm| norm.kind) {
        Some(NormKind::Rms) => "RMSNorm",
        Some(NormKind::Layer { .. }) => "LayerNorm",
        None => "no norm",
    };
    let after = if layer.post_mixer_norm.is_some() { " of the outputs" } else { "" };
    let residual = match layer.residual {
        Residual::Sequential => "",
        Residual::Parallel | Residual::ParallelSharedNorm => ", halves in parallel",
    };
    format!("{norm}{after}{residual}")
}
