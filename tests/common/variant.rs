//! A tiny model of `tests/data/logits` in memory, to be stored in another way.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;

use ::safetensors::tensor::TensorView;
use ::safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tramontane::{Format, Model, Result};

use crate::common::{Expected, folder, load, prefill};
use crate::tiny::{Tensor, safetensors};

/// A tiny model in memory.
pub(crate) struct Tiny {
    pub(crate) name: &'static str,
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
}

impl Tiny {
    /// The one in the folder `name` of `tests/data/logits`, which must be in f32.
    pub(crate) fn of(name: &'static str) -> Self {
        let config = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
        let quoted = config.replace("Infinity", "\"Infinity\"");
        let file = std::fs::read(folder(name).join("model.safetensors")).unwrap();
        let tensor = |(name, view): (String, TensorView<'_>)| {
            assert_eq!(view.dtype(), Dtype::F32);
            let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
            Tensor { name, dtype: "F32", shape, data }
        };
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let mut tensors: Vec<Tensor> = tensors.tensors().into_iter().map(tensor).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { name, config: serde_json::from_str(&quoted).unwrap(), tensors }
    }

    /// Takes out every tensor whose name ends with `end`.
    pub(crate) fn take(&mut self, end: &str) -> Vec<Tensor> {
        self.tensors.extract_if(.., |tensor| tensor.name.ends_with(end)).collect()
    }

    /// Writes it to a folder called after `variant`.
    pub(crate) fn write(&self, variant: &str) -> PathBuf {
        let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let folder = tmp.join("mixers").join(self.name).join(variant);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(folder.join("model.safetensors"), safetensors(&self.tensors)).unwrap();
        folder
    }

    /// Loads it from a folder called after `variant`.
    pub(crate) fn load(&self, variant: &str) -> Result<Model> {
        load(&self.write(variant), Format::F32)
    }

    /// The logits of the model's first prompt.
    pub(crate) fn logits(&self, variant: &str) -> Vec<f32> {
        let ids = Expected::of(self.name).ids("input_ids_0");
        prefill(&self.load(variant).unwrap(), &ids)
    }
}

/// Matrix `number` of `tensor`, of `rows` rows, as a tensor of its own.
fn slice(tensor: &Tensor, name: String, number: usize, rows: usize) -> Tensor {
    let cols = tensor.shape[2];
    let size = tensor.data.len() / tensor.shape.iter().product::<usize>();
    let bytes = rows * cols * size;
    let data = tensor.data[number * bytes..(number + 1) * bytes].to_vec();
    Tensor { name, dtype: tensor.dtype, shape: vec![rows, cols], data }
}

/// Stores each expert's matrices apart, under the names of DeepSeek-V3.
pub(crate) fn apart(tiny: &mut Tiny) {
    let (ups, downs) = (tiny.take(".experts.gate_up_proj"), tiny.take(".experts.down_proj"));
    assert!(!ups.is_empty() && ups.len() == downs.len());
    for (up, down) in ups.iter().zip(&downs) {
        let experts = up.name.trim_end_matches(".gate_up_proj").to_owned();
        for e in 0..up.shape[0] {
            let rows = up.shape[1] / 2;
            for (i, part) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                let name = format!("{experts}.{e}.{part}.weight");
                tiny.tensors.push(slice(up, name, 2 * e + i, rows));
            }
            let name = format!("{experts}.{e}.down_proj.weight");
            tiny.tensors.push(slice(down, name, e, down.shape[1]));
        }
    }
}
