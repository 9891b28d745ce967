//! Counting parameters, from the shapes alone.

use super::{
    Architecture, Attention, Dense, Experts, Latent, Layer, Mamba, Mixer, Mlp, Norm, NormKind,
    QkNorm,
};

impl Architecture {
    /// Number of parameters, from the shapes, tied weights counted once; `u64::MAX` if there are more.
    #[must_use]
    pub fn n_parameters(&self) -> u64 {
        let hidden = self.hidden as u128;
        let embed = self.vocab as u128 * hidden;
        let positions = self.embedding.learned_positions.map_or(0, |rows| rows as u128 * hidden);
        let head = if self.head.tied { 0 } else { embed };
        let head_bias = if self.head.bias { self.vocab as u128 } else { 0 };
        let norms = self.final_norm.n_parameters(self.hidden)
            + self.embedding.norm.as_ref().map_or(0, |n| n.n_parameters(self.hidden));
        let n = embed
            + positions
            + head
            + head_bias
            + norms
            + self.layers.iter().map(|l| l.n_parameters(self.hidden)).sum::<u128>();
        u64::try_from(n).unwrap_or(u64::MAX)
    }
}

impl Layer {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let norms = [&self.mixer_norm, &self.post_mixer_norm, &self.mlp_norm, &self.post_mlp_norm];
        let norms: u128 = norms.into_iter().flatten().map(|n| n.n_parameters(hidden)).sum();
        let mixer = match &self.mixer {
            None => 0,
            Some(Mixer::Attention(attention)) => attention.n_parameters(hidden),
            Some(Mixer::Latent(latent)) => latent.n_parameters(hidden),
            Some(Mixer::Mamba(mamba)) => mamba.n_parameters(hidden),
        };
        norms + mixer + self.mlp.as_ref().map_or(0, |mlp| mlp.n_parameters(hidden))
    }
}

impl Norm {
    fn n_parameters(&self, width: usize) -> u128 {
        match self.kind {
            NormKind::Rms | NormKind::Layer { bias: false, .. } => width as u128,
            NormKind::Layer { bias: true, .. } => 2 * width as u128,
        }
    }
}

impl Attention {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let (q, kv, hidden) = (self.q_dim() as u128, self.kv_dim() as u128, hidden as u128);
        let biases =
            if self.qkv_bias { q + 2 * kv } else { 0 } + if self.o_bias { hidden } else { 0 };
        let norms = match &self.qk_norm {
            None => 0,
            Some(QkNorm::PerHead(n)) => 2 * n.n_parameters(self.head_dim),
            Some(QkNorm::FullWidth(n)) => {
                n.n_parameters(self.q_dim()) + n.n_parameters(self.kv_dim())
            }
        };
        hidden * (2 * q + 2 * kv) + biases + norms
    }
}

impl Latent {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let (heads, rank) = (self.n_heads as u128, self.kv_rank as u128);
        let (q, v) = (heads * self.k_dim() as u128, heads * self.v_dim as u128);
        let (latent, kv) = (rank + self.rope.rotary_dim as u128, heads * self.nope_dim as u128 + v);
        let (hidden, bias) = (hidden as u128, u128::from(self.bias));
        let query = match self.q_rank {
            Some(r) => r as u128 * (hidden + q + bias) + self.norm.n_parameters(r),
            None => hidden * q,
        };
        let norm = self.norm.n_parameters(self.kv_rank);
        query + (hidden + bias) * latent + norm + rank * kv + hidden * (v + bias)
    }
}

impl Mamba {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let (inner, conv, input) =
            (self.inner() as u128, self.conv_dim() as u128, self.in_dim() as u128);
        let (hidden, bias) = (hidden as u128, u128::from(self.bias));
        let conv = conv * (self.conv_width as u128 + u128::from(self.conv_bias));
        // The decay, the skip and the bias of the time step of each head; the gated norm.
        let small = 3 * self.n_heads as u128 + inner;
        (hidden + bias) * input + conv + small + hidden * (inner + bias)
    }
}

impl Dense {
    fn n_parameters(&self, hidden: u128, gated: bool) -> u128 {
        let (inner, n_in) = (self.inner as u128, if gated { 2 } else { 1 });
        (n_in + 1) * hidden * inner + if self.bias { n_in * inner + hidden } else { 0 }
    }
}

impl Experts {
    fn n_parameters(&self, hidden: u128) -> u128 {
        let expert = Dense { inner: self.inner, activation: self.activation, bias: false };
        let router = hidden + u128::from(self.router.correction);
        let shared = self.shared.as_ref().map_or(0, |dense| dense.n_parameters(hidden, self.gated));
        self.n_experts as u128 * (expert.n_parameters(hidden, self.gated) + router) + shared
    }
}

impl Mlp {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let hidden = hidden as u128;
        match self {
            Self::Gated(dense) => dense.n_parameters(hidden, true),
            Self::Plain(dense) => dense.n_parameters(hidden, false),
            Self::Experts(experts) => experts.n_parameters(hidden),
        }
    }
}
