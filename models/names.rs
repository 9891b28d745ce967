//! How checkpoints name the tensors of a family.
//!
//! A name is built from a pattern: `{P}` is the prefix of the text model within the file, `{H}` that of its head, `{L}`
//! the number of the layer, `{E}` the number of the expert. Patterns stop before `.weight` or `.bias`.

/// A module of the model that owns tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding, `[vocab, hidden]`.
    Embed,
    /// Norm after the embedding.
    EmbedNorm,
    /// Table of learned positions.
    LearnedPositions,
    /// Norm before the head.
    FinalNorm,
    /// Output head, `[vocab, hidden]`.
    Head,
    /// Norm before the mixer.
    MixerNorm,
    /// Norm after the mixer.
    PostMixerNorm,
    /// Norm before the MLP.
    MlpNorm,
    /// Norm after the MLP.
    PostMlpNorm,
    /// Query projection, `[n_heads · head_dim, hidden]`.
    Q,
    /// Key projection, `[n_kv_heads · head_dim, hidden]`.
    K,
    /// Value projection, `[n_kv_heads · head_dim, hidden]`.
    V,
    /// Query, key and value projections in one matrix: see [`Qkv`](crate::spec::Qkv).
    Qkv,
    /// Output projection, `[hidden, n_heads · head_dim]`.
    O,
    /// Norm of the queries.
    QNorm,
    /// Norm of the keys.
    KNorm,
    /// Gate projection, `[inner, hidden]`.
    Gate,
    /// Up projection, `[inner, hidden]`.
    Up,
    /// Down projection, `[hidden, inner]`.
    Down,
    /// Router of the experts, `[n_experts, hidden]`.
    Router,
    /// What is added to the experts' scores for the choice, `[n_experts]`; a tensor without suffix.
    RouterCorrection,
    /// Gate projection of one expert.
    ExpertGate,
    /// Up projection of one expert.
    ExpertUp,
    /// Down projection of one expert.
    ExpertDown,
    /// Gate, then up projections of all experts, `[n_experts, 2 · inner, hidden]`; a tensor without suffix.
    AllGateUp,
    /// Up projections of all experts without gate, `[n_experts, inner, hidden]`; a tensor without suffix.
    AllUp,
    /// Down projections of all experts, `[n_experts, hidden, inner]`; a tensor without suffix.
    AllDown,
    /// Gate projection of the shared expert.
    SharedGate,
    /// Up projection of the shared expert.
    SharedUp,
    /// Down projection of the shared expert.
    SharedDown,
    /// Projection to the latent of the queries, `[q_rank, hidden]`.
    QLatent,
    /// Norm of the latent of the queries.
    QLatentNorm,
    /// Query projection from the latent, `[n_heads · k_dim, q_rank]`.
    QFromLatent,
    /// Projection to the latent of keys and values and to the shared rotated key, `[kv_rank + rotary_dim, hidden]`.
    KvLatent,
    /// Norm of the latent of keys and values.
    KvLatentNorm,
    /// Keys without position and values from the latent, `[n_heads · (nope_dim + v_dim), kv_rank]`.
    KvFromLatent,
    /// Input projection of a Mamba mixer: gate, channels of the convolution, time steps.
    MambaIn,
    /// Output projection of a Mamba mixer, `[hidden, inner]`.
    MambaOut,
    /// Convolution of a Mamba mixer, `[conv_dim, 1, conv_width]`.
    MambaConv,
    /// Logarithm of the decay of each head; a tensor without suffix.
    MambaDecay,
    /// How much of its input each head passes on; a tensor without suffix.
    MambaSkip,
    /// Bias of the time step of each head; a tensor without suffix.
    MambaStep,
    /// Gated norm of a Mamba mixer, `[inner]`.
    MambaNorm,
}

/// Names of some parts; several names for one part are tried in their order.
pub type Group = &'static [(Part, &'static str)];

/// The names of one way of storing a family.
#[derive(Debug, PartialEq)]
pub struct Names {
    /// What may stand before the text model's tensors and before its head; the first one under which the embedding
    /// exists is taken.
    pub prefixes: &'static [Prefix],
    /// Patterns of the parts, in groups that families share.
    pub parts: &'static [Group],
    /// Tensors that are never used: a name that starts with or contains one of these is skipped.
    pub unused: &'static [&'static str],
}

/// What stands before the text model's tensors, and before its head.
pub type Prefix = (&'static str, &'static str);

impl Names {
    /// The names that the module `part` may have, the usual one first; none if this family has no such part.
    ///
    /// ```
    /// use tramontane_models::names::{HUGGING_FACE, Part};
    /// let mut names = HUGGING_FACE.modules(Part::Q, ("model.", ""), 7, 0);
    /// assert_eq!(names.next().as_deref(), Some("model.layers.7.self_attn.q_proj"));
    /// assert_eq!(names.next(), None);
    /// ```
    pub fn modules(
        &self,
        part: Part,
        (prefix, head): Prefix,
        layer: usize,
        expert: usize,
    ) -> impl Iterator<Item = String> {
        let patterns = self.parts.iter().copied().flatten().filter(move |(p, _)| *p == part);
        patterns.map(move |(_, pattern)| {
            let name = pattern.replace("{P}", prefix).replace("{H}", head);
            name.replace("{L}", &layer.to_string()).replace("{E}", &expert.to_string())
        })
    }

    /// Whether the tensor `name` is known and not needed.
    #[must_use]
    pub fn is_unused(&self, name: &str) -> bool {
        self.unused.iter().any(|pattern| name.contains(pattern))
    }
}

/// Embedding, last norm and head of Llama and most families after it.
const FRAME: Group =
    &[(Part::Embed, "{P}embed_tokens"), (Part::FinalNorm, "{P}norm"), (Part::Head, "{H}lm_head")];

/// Norms before attention and MLP.
const NORMS: Group = &[
    (Part::MixerNorm, "{P}layers.{L}.input_layernorm"),
    (Part::MlpNorm, "{P}layers.{L}.post_attention_layernorm"),
];

/// Norms behind attention and MLP.
const NORMS_BEHIND: Group = &[
    (Part::PostMixerNorm, "{P}layers.{L}.post_attention_layernorm"),
    (Part::PostMlpNorm, "{P}layers.{L}.post_feedforward_layernorm"),
];

const ATTENTION: Group = &[
    (Part::Q, "{P}layers.{L}.self_attn.q_proj"),
    (Part::K, "{P}layers.{L}.self_attn.k_proj"),
    (Part::V, "{P}layers.{L}.self_attn.v_proj"),
    (Part::O, "{P}layers.{L}.self_attn.o_proj"),
    (Part::QNorm, "{P}layers.{L}.self_attn.q_norm"),
    (Part::KNorm, "{P}layers.{L}.self_attn.k_norm"),
];

const LATENT_ATTENTION: Group = &[
    (Part::QLatent, "{P}layers.{L}.self_attn.q_a_proj"),
    (Part::QLatentNorm, "{P}layers.{L}.self_attn.q_a_layernorm"),
    (Part::QFromLatent, "{P}layers.{L}.self_attn.q_b_proj"),
    (Part::KvLatent, "{P}layers.{L}.self_attn.kv_a_proj_with_mqa"),
    (Part::KvLatentNorm, "{P}layers.{L}.self_attn.kv_a_layernorm"),
    (Part::KvFromLatent, "{P}layers.{L}.self_attn.kv_b_proj"),
];

const MLP: Group = &[
    (Part::Gate, "{P}layers.{L}.mlp.gate_proj"),
    (Part::Up, "{P}layers.{L}.mlp.up_proj"),
    (Part::Down, "{P}layers.{L}.mlp.down_proj"),
];

/// Mixtral's experts, one by one.
const MIXTRAL_EXPERTS: Group = &[
    (Part::Router, "{P}layers.{L}.block_sparse_moe.gate"),
    (Part::ExpertGate, "{P}layers.{L}.block_sparse_moe.experts.{E}.w1"),
    (Part::ExpertDown, "{P}layers.{L}.block_sparse_moe.experts.{E}.w2"),
    (Part::ExpertUp, "{P}layers.{L}.block_sparse_moe.experts.{E}.w3"),
];

/// All experts of a layer in one tensor, as transformers 5 keeps them.
const JOINED_EXPERTS: Group = &[
    (Part::Router, "{P}layers.{L}.mlp.gate"),
    (Part::AllGateUp, "{P}layers.{L}.mlp.experts.gate_up_proj"),
    (Part::AllDown, "{P}layers.{L}.mlp.experts.down_proj"),
];

/// DeepSeek-V3's experts, one by one, and those that all tokens share.
const DEEPSEEK_EXPERTS: Group = &[
    (Part::RouterCorrection, "{P}layers.{L}.mlp.gate.e_score_correction_bias"),
    (Part::ExpertGate, "{P}layers.{L}.mlp.experts.{E}.gate_proj"),
    (Part::ExpertUp, "{P}layers.{L}.mlp.experts.{E}.up_proj"),
    (Part::ExpertDown, "{P}layers.{L}.mlp.experts.{E}.down_proj"),
    (Part::SharedGate, "{P}layers.{L}.mlp.shared_experts.gate_proj"),
    (Part::SharedUp, "{P}layers.{L}.mlp.shared_experts.up_proj"),
    (Part::SharedDown, "{P}layers.{L}.mlp.shared_experts.down_proj"),
];

/// Llama and most families after it, as Hugging Face stores them.
pub const HUGGING_FACE: Names = Names {
    // A text model may be part of a larger one, whose names have changed between versions of transformers.
    prefixes: &[
        ("model.", ""),
        ("model.language_model.", ""),
        ("language_model.model.", "language_model."),
    ],
    parts: &[FRAME, NORMS, ATTENTION, MLP, MIXTRAL_EXPERTS, JOINED_EXPERTS],
    unused: UNUSED,
};

/// Latent attention and experts of DeepSeek-V3, which Mistral Large 3 and Mistral Small 4 share.
pub const DEEPSEEK: Names = Names {
    prefixes: HUGGING_FACE.prefixes,
    parts: &[FRAME, NORMS, ATTENTION, LATENT_ATTENTION, MLP, JOINED_EXPERTS, DEEPSEEK_EXPERTS],
    unused: UNUSED,
};

/// OLMo-2, whose norms stand behind attention and MLP.
pub const OLMO2: Names = Names {
    prefixes: &[("model.", "")],
    parts: &[FRAME, NORMS_BEHIND, ATTENTION, MLP],
    unused: UNUSED,
};

/// Nemotron-H and Mamba-2, whose blocks have one norm and one mixer each, whatever it is. Mistral's own file of
/// Mamba-Codestral keeps the names of the library it was trained with.
pub const MAMBA: Names = Names {
    prefixes: &[("backbone.", ""), ("model.", ""), ("model.backbone.", "model.")],
    parts: &[&[
        (Part::Embed, "{P}embeddings"),
        (Part::Embed, "{P}embedding"),
        (Part::FinalNorm, "{P}norm_f"),
        (Part::Head, "{H}lm_head"),
        (Part::MixerNorm, "{P}layers.{L}.norm"),
        (Part::MlpNorm, "{P}layers.{L}.norm"),
        (Part::Q, "{P}layers.{L}.mixer.q_proj"),
        (Part::K, "{P}layers.{L}.mixer.k_proj"),
        (Part::V, "{P}layers.{L}.mixer.v_proj"),
        (Part::O, "{P}layers.{L}.mixer.o_proj"),
        (Part::Up, "{P}layers.{L}.mixer.up_proj"),
        (Part::Down, "{P}layers.{L}.mixer.down_proj"),
        (Part::Router, "{P}layers.{L}.mixer.gate"),
        (Part::RouterCorrection, "{P}layers.{L}.mixer.gate.e_score_correction_bias"),
        (Part::ExpertUp, "{P}layers.{L}.mixer.experts.{E}.up_proj"),
        (Part::ExpertDown, "{P}layers.{L}.mixer.experts.{E}.down_proj"),
        (Part::AllUp, "{P}layers.{L}.mixer.experts.up_proj"),
        (Part::AllDown, "{P}layers.{L}.mixer.experts.down_proj"),
        (Part::SharedUp, "{P}layers.{L}.mixer.shared_experts.up_proj"),
        (Part::SharedDown, "{P}layers.{L}.mixer.shared_experts.down_proj"),
        (Part::MambaIn, "{P}layers.{L}.mixer.in_proj"),
        (Part::MambaOut, "{P}layers.{L}.mixer.out_proj"),
        (Part::MambaConv, "{P}layers.{L}.mixer.conv1d"),
        (Part::MambaDecay, "{P}layers.{L}.mixer.A_log"),
        (Part::MambaSkip, "{P}layers.{L}.mixer.D"),
        (Part::MambaStep, "{P}layers.{L}.mixer.dt_bias"),
        (Part::MambaNorm, "{P}layers.{L}.mixer.norm"),
    ]],
    // Layers that guess further tokens.
    unused: &["rotary_emb.inv_freq", ".input_scale", "activation_scale", "mtp."],
};

/// Rotary frequencies follow from the configuration; activations are not quantised, so their scales are not needed;
/// images are not read.
const UNUSED: &[&str] = &[
    "rotary_emb.inv_freq",
    // Of one matrix, or of all experts: `experts.down_proj_activation_scale`.
    "activation_scale",
    ".input_scale",
    ".qscale_act",
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
];

/// Embedding, last norm and head of BLOOM and Falcon, and their blocks without norms.
const FALCON: Group = &[
    (Part::Embed, "{P}word_embeddings"),
    (Part::FinalNorm, "{P}ln_f"),
    (Part::Head, "lm_head"),
    (Part::Qkv, "{P}h.{L}.self_attention.query_key_value"),
    (Part::O, "{P}h.{L}.self_attention.dense"),
    (Part::Up, "{P}h.{L}.mlp.dense_h_to_4h"),
    (Part::Down, "{P}h.{L}.mlp.dense_4h_to_h"),
];

/// BLOOM, and Falcon with one norm or two in sequence; the hub's BLOOM files have no prefix.
pub const BLOOM: Names = Names {
    prefixes: &[("transformer.", ""), ("", "")],
    parts: &[
        FALCON,
        &[
            (Part::EmbedNorm, "{P}word_embeddings_layernorm"),
            (Part::MixerNorm, "{P}h.{L}.input_layernorm"),
            (Part::MlpNorm, "{P}h.{L}.post_attention_layernorm"),
        ],
    ],
    unused: UNUSED,
};

/// Falcon 40B, whose attention and MLP have a norm each and run in parallel.
pub const FALCON_TWO_NORMS: Names = Names {
    prefixes: &[("transformer.", "")],
    parts: &[FALCON, &[(Part::MixerNorm, "{P}h.{L}.ln_attn"), (Part::MlpNorm, "{P}h.{L}.ln_mlp")]],
    unused: UNUSED,
};

/// Embedding, norms and head of GPT-2 and GPT-J.
const GPT: Group = &[
    (Part::Embed, "{P}wte"),
    (Part::FinalNorm, "{P}ln_f"),
    (Part::Head, "lm_head"),
    (Part::MixerNorm, "{P}h.{L}.ln_1"),
    (Part::MlpNorm, "{P}h.{L}.ln_2"),
];

/// GPT-2; the hub's oldest files have no prefix, and carry causal masks as tensors.
pub const GPT2: Names = Names {
    prefixes: &[("transformer.", ""), ("", "")],
    parts: &[
        GPT,
        &[
            (Part::LearnedPositions, "{P}wpe"),
            (Part::Qkv, "{P}h.{L}.attn.c_attn"),
            (Part::O, "{P}h.{L}.attn.c_proj"),
            (Part::Up, "{P}h.{L}.mlp.c_fc"),
            (Part::Down, "{P}h.{L}.mlp.c_proj"),
        ],
    ],
    unused: &[".attn.bias", ".attn.masked_bias"],
};

/// GPT-J.
pub const GPTJ: Names = Names {
    prefixes: &[("transformer.", "")],
    parts: &[
        GPT,
        &[
            (Part::Q, "{P}h.{L}.attn.q_proj"),
            (Part::K, "{P}h.{L}.attn.k_proj"),
            (Part::V, "{P}h.{L}.attn.v_proj"),
            (Part::O, "{P}h.{L}.attn.out_proj"),
            (Part::Up, "{P}h.{L}.mlp.fc_in"),
            (Part::Down, "{P}h.{L}.mlp.fc_out"),
        ],
    ],
    unused: GPT2.unused,
};

/// Mistral's own format (`consolidated*.safetensors`): attention, latent or not, MLPs, and experts of both kinds.
pub const MISTRAL_NATIVE: Names = Names {
    prefixes: &[("", "")],
    parts: &[&[
        (Part::Embed, "{P}tok_embeddings"),
        (Part::FinalNorm, "{P}norm"),
        (Part::Head, "{P}output"),
        (Part::MixerNorm, "{P}layers.{L}.attention_norm"),
        (Part::MlpNorm, "{P}layers.{L}.ffn_norm"),
        (Part::Q, "{P}layers.{L}.attention.wq"),
        (Part::K, "{P}layers.{L}.attention.wk"),
        (Part::V, "{P}layers.{L}.attention.wv"),
        (Part::O, "{P}layers.{L}.attention.wo"),
        (Part::QLatent, "{P}layers.{L}.attention.wq_a"),
        (Part::QLatentNorm, "{P}layers.{L}.attention.q_a_norm"),
        (Part::QFromLatent, "{P}layers.{L}.attention.wq_b"),
        (Part::KvLatent, "{P}layers.{L}.attention.wkv_a_with_mqa"),
        (Part::KvLatentNorm, "{P}layers.{L}.attention.kv_a_norm"),
        (Part::KvFromLatent, "{P}layers.{L}.attention.wkv_b"),
        (Part::Gate, "{P}layers.{L}.feed_forward.w1"),
        (Part::Down, "{P}layers.{L}.feed_forward.w2"),
        (Part::Up, "{P}layers.{L}.feed_forward.w3"),
        (Part::Router, "{P}layers.{L}.block_sparse_moe.gate"),
        (Part::ExpertGate, "{P}layers.{L}.block_sparse_moe.experts.{E}.w1"),
        (Part::ExpertDown, "{P}layers.{L}.block_sparse_moe.experts.{E}.w2"),
        (Part::ExpertUp, "{P}layers.{L}.block_sparse_moe.experts.{E}.w3"),
        (Part::Router, "{P}layers.{L}.gate"),
        (Part::ExpertGate, "{P}layers.{L}.experts.{E}.w1"),
        (Part::ExpertDown, "{P}layers.{L}.experts.{E}.w2"),
        (Part::ExpertUp, "{P}layers.{L}.experts.{E}.w3"),
        (Part::SharedGate, "{P}layers.{L}.shared_experts.w1"),
        (Part::SharedDown, "{P}layers.{L}.shared_experts.w2"),
        (Part::SharedUp, "{P}layers.{L}.shared_experts.w3"),
    ]],
    // Scales of activations, which are not quantised here; images are not read.
    unused: &[
        ".qscale_act",
        "vision_encoder.",
        "vision_language_adapter.",
        "patch_merger.",
        "pre_mm_projector_norm.",
    ],
};
