//! What is said of a tensor that has another shape than the configuration wants.

use tramontane_models::names::Part;

use crate::checkpoint::TensorData;
use crate::error::Error;

/// The error for a tensor of another shape, with the configuration's keys that decide the shape.
pub(super) fn mismatch(part: Part, tensor: &TensorData, expected: &[usize]) -> Error {
    let keys = match part {
        Part::Embed | Part::Head => "`vocab_size` and `hidden_size`",
        Part::K | Part::V => "`num_key_value_heads`, `head_dim` and `hidden_size`",
        Part::Q | Part::O => "`num_attention_heads`, `head_dim` and `hidden_size`",
        Part::Gate
        | Part::Up
        | Part::Down
        | Part::ExpertGate
        | Part::ExpertUp
        | Part::ExpertDown => "`intermediate_size` and `hidden_size`",
        Part::AllGateUp | Part::AllUp | Part::AllDown => {
            "`n_routed_experts`, `moe_intermediate_size` and `hidden_size`"
        }
        Part::SharedGate | Part::SharedUp | Part::SharedDown => {
            "`n_shared_experts`, `moe_intermediate_size` or `moe_shared_expert_intermediate_size`, and `hidden_size`"
        }
        Part::Router | Part::RouterCorrection => "the number of experts and `hidden_size`",
        Part::QLatent | Part::QLatentNorm => "`q_lora_rank` and `hidden_size`",
        Part::QFromLatent => {
            "`num_attention_heads`, `qk_nope_head_dim`, `qk_rope_head_dim` and `q_lora_rank`"
        }
        Part::KvLatent | Part::KvLatentNorm => {
            "`kv_lora_rank`, `qk_rope_head_dim` and `hidden_size`"
        }
        Part::KvFromLatent => {
            "`num_attention_heads`, `qk_nope_head_dim`, `v_head_dim` and `kv_lora_rank`"
        }
        Part::MambaIn
        | Part::MambaOut
        | Part::MambaConv
        | Part::MambaDecay
        | Part::MambaSkip
        | Part::MambaStep
        | Part::MambaNorm => {
            "the number and width of the Mamba heads, `n_groups`, the state's size and `conv_kernel`"
        }
        Part::Qkv => "the numbers of heads and `hidden_size`",
        Part::QNorm | Part::KNorm => "`head_dim`",
        Part::EmbedNorm
        | Part::LearnedPositions
        | Part::FinalNorm
        | Part::MixerNorm
        | Part::PostMixerNorm
        | Part::MlpNorm
        | Part::PostMlpNorm => "`hidden_size`",
    };
    let transposed = tensor.shape.len() == 2 && expected == [tensor.shape[1], tensor.shape[0]];
    let error = tensor.error(format!(
        "`{}` has shape {:?}, expected {expected:?} from {keys}",
        tensor.name, tensor.shape
    ));
    if transposed {
        error.so("the matrix seems to be transposed")
    } else {
        error.hint("the configuration and weights of one and the same revision")
    }
}
