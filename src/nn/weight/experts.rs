//! Experts out of one tensor that holds all of them: a part of it, where it is.

use safetensors::Dtype;
use tramontane_models::names::Part;
use tramontane_models::spec::Mlp;

use super::{At, Loader};
use crate::checkpoint::TensorData;
use crate::error::Result;
use crate::ops::Ops;

/// An expert's matrix, whether the experts have gates, the tensor of all experts that holds it, how many matrices of
/// each expert that has, and which of them it is.
const PLACES: [(Part, bool, Part, usize, usize); 5] = [
    (Part::ExpertGate, true, Part::AllGateUp, 2, 0),
    (Part::ExpertUp, true, Part::AllGateUp, 2, 1),
    (Part::ExpertUp, false, Part::AllUp, 1, 0),
    (Part::ExpertDown, true, Part::AllDown, 1, 0),
    (Part::ExpertDown, false, Part::AllDown, 1, 0),
];

impl<D: Ops> Loader<'_, D> {
    /// The matrix `part`, `[rows, cols]`, of one expert, if the checkpoint keeps all experts in one tensor
    /// `[n_experts, matrices · rows, cols]`.
    ///
    /// # Errors
    ///
    /// If that tensor has another shape, or its scales are missing or of another number than the experts.
    pub(super) fn part_of_experts(
        &mut self,
        part: Part,
        at: At,
        shape: &[usize],
    ) -> Result<Option<TensorData>> {
        let layer = self.architecture.layers.get(at.layer).and_then(|layer| layer.mlp.as_ref());
        let (Some(Mlp::Experts(experts)), [rows, cols]) = (layer, shape) else { return Ok(None) };
        let place = PLACES.into_iter().find(|p| p.0 == part && p.1 == experts.gated);
        let Some((_, _, all, n_matrices, matrix)) = place else { return Ok(None) };
        let Some(name) = self.name(all, at, "") else { return Ok(None) };
        if self.checkpoint.get(&name).is_none() {
            return Ok(None);
        }
        let fused = self.stored(all, at, "", &[experts.n_experts, n_matrices * rows, *cols])?;
        let row = fused.bytes.len() / (experts.n_experts * n_matrices * rows).max(1);
        let start = (at.expert * n_matrices + matrix) * rows * row;
        let Some(bytes) = fused.bytes.slice(start..start + rows * row) else {
            return Err(fused.error(format!("`{name}` is too short for its shape")));
        };
        let tensor = TensorData { shape: vec![*rows, *cols], bytes, ..fused.clone() };
        if tensor.dtype != Dtype::F8_E4M3 {
            tensor.check_is_float()?;
            return Ok(Some(tensor));
        }
        let scale = self.scale(fused, &name)?;
        let own = match scale.len() {
            1 => scale.clone(),
            _ => one(scale, at.expert, experts.n_experts)?,
        };
        self.scaled(&tensor, &own, None).map(Some)
    }
}

/// The scale of one expert, out of `[n_experts, 1, 1]`.
fn one(scales: &TensorData, expert: usize, n_experts: usize) -> Result<TensorData> {
    let bytes = scales.bytes.len() / n_experts.max(1);
    match scales.bytes.slice(expert * bytes..(expert + 1) * bytes) {
        Some(bytes) if scales.shape == [n_experts, 1, 1] || scales.shape == [n_experts] => {
            Ok(TensorData { shape: vec![1], bytes, ..scales.clone() })
        }
        _ => Err(scales.error(format!(
            "`{}` has shape {:?}, expected [{n_experts}, 1, 1]: one scale for each expert",
            scales.name, scales.shape
        ))),
    }
}
