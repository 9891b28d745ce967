//! What several test files share: the tiny models of `tests/data/logits` and the distance of logits.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tramontane::files::ModelFiles;
use tramontane::{Format, LoadOptions, Model, Result};

/// The folder of the tiny model `name`.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits").join(name)
}

/// The names of all tiny models, sorted.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder("")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Loads the model in `folder`; on one thread, because tests already run side by side.
pub fn load(folder: &Path, format: Format) -> Result<Model> {
    load_threads(folder, format, 1)
}

/// Loads the model in `folder` on so many threads.
pub fn load_threads(folder: &Path, format: Format, threads: usize) -> Result<Model> {
    let options = LoadOptions { format, threads: Some(threads), ..LoadOptions::default() };
    Model::from_files("test", &ModelFiles::folder(folder), &options)
}

/// The logits of `ids` in one pass through an empty cache: `[ids.len() · vocab]`.
pub fn prefill(model: &Model, ids: &[u32]) -> Vec<f32> {
    forward(model, ids, &mut model.cache().unwrap())
}

/// The logits of `ids` after what is in `cache`: `[ids.len() · vocab]`.
pub fn forward(model: &Model, ids: &[u32], cache: &mut tramontane::KvCache) -> Vec<f32> {
    let logits = model.forward(ids, cache).unwrap();
    assert_eq!(logits.dims(), [ids.len(), model.architecture().vocab]);
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// The index of the largest number, the first of equals.
pub fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&x| x == best).unwrap() as u32
}

/// The tensors of an `expected.safetensors`.
pub struct Expected(Vec<u8>);

impl Expected {
    /// Those of the tiny model `name`.
    pub fn of(name: &str) -> Self {
        Self(std::fs::read(folder(name).join("expected.safetensors")).unwrap())
    }

    fn bytes(&self, tensor: &str, dtype: Dtype) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(tensor).unwrap();
        assert_eq!(view.dtype(), dtype, "{tensor}");
        view.data().to_vec()
    }

    /// A tensor of ids.
    pub fn ids(&self, tensor: &str) -> Vec<u32> {
        let bytes = self.bytes(tensor, Dtype::I64);
        let ids = bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b));
        ids.map(|id| u32::try_from(id).unwrap()).collect()
    }

    /// A tensor of numbers.
    pub fn numbers(&self, tensor: &str) -> Vec<f32> {
        let bytes = self.bytes(tensor, Dtype::F32);
        bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

/// How far logits are from what is expected, or may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// The largest difference.
    pub max_abs: f64,
    /// The length of the difference, as a share of the length of what is expected.
    pub rel_l2: f64,
}

impl Distance {
    /// The distance of `found` from `expected`; NaN is infinitely far.
    pub fn between(found: &[f32], expected: &[f32]) -> Self {
        assert_eq!(found.len(), expected.len(), "number of logits");
        let (mut max_abs, mut error, mut size) = (0f64, 0f64, 0f64);
        for (&f, &e) in found.iter().zip(expected) {
            let difference = (f64::from(f) - f64::from(e)).abs();
            max_abs = if difference <= max_abs { max_abs } else { difference };
            error += difference * difference;
            size += f64::from(e) * f64::from(e);
        }
        Self { max_abs, rel_l2: (error / size).sqrt() }
    }

    /// Whether this is no farther than `tolerance`.
    pub fn within(self, tolerance: Self) -> bool {
        self.max_abs <= tolerance.max_abs && self.rel_l2 <= tolerance.rel_l2
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max abs {:.2e}, relative L2 {:.2e}", self.max_abs, self.rel_l2)
    }
}
