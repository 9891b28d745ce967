//! candle-transformers' Llama beside the other engines: `peer-candle FOLDER [f32|bf16|f16]`.
//!
//! FOLDER holds `config.json` and `*.safetensors` of a Llama-shaped model. Answers the tests of `run.py` as `worker.py`
//! does; the number of threads is that of `RAYON_NUM_THREADS`. Only the passes through the model are inside the timer.

use std::io::{BufRead, stdin};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let Some(folder) = words.next().map(PathBuf::from) else {
        bail!("usage: peer-candle FOLDER [f32|bf16|f16]");
    };
    let dtype = match words.next().as_deref() {
        None | Some("f32") => DType::F32,
        Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some(other) => bail!("`{other}` is no format, expected f32, bf16 or f16"),
    };
    let begin = Instant::now();
    let (model, config) = load(&folder, dtype)?;
    println!("{}", json!({ "load_s": begin.elapsed().as_secs_f64() }));
    let engine = Engine { model, config, dtype };
    engine.measure(32, 1, 0)?;
    for line in stdin().lock().lines() {
        let test: Value = serde_json::from_str(&line?)?;
        let number = |key: &str| test[key].as_u64().unwrap_or(0) as usize;
        let speed = engine.measure(number("prompt"), number("generate"), number("depth"))?;
        println!("{}", json!({ "t_s": speed }));
    }
    Ok(())
}

fn load(folder: &Path, dtype: DType) -> Result<(Llama, Config)> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let config: LlamaConfig = serde_json::from_slice(&text)?;
    let config = config.into_config(false);
    let files = weights(folder)?;
    // SAFETY: nothing writes to the files while they are measured.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu)? };
    Ok((Llama::load(weights, &config)?, config))
}

/// The weight files of a folder.
fn weights(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no *.safetensors in {}", folder.display());
    }
    Ok(files)
}

struct Engine {
    model: Llama,
    config: Config,
    dtype: DType,
}

impl Engine {
    /// The speed of a prompt, or of tokens one at a time, after `depth` others.
    fn measure(&self, prompt: usize, generate: usize, depth: usize) -> Result<f64> {
        let mut cache = Cache::new(true, self.dtype, &self.config, &Device::Cpu)?;
        let mut position = 0;
        if depth > 0 {
            self.forward(depth, &mut position, &mut cache)?;
        }
        let begin = Instant::now();
        if prompt > 0 {
            self.forward(prompt, &mut position, &mut cache)?;
        } else {
            (0..generate).try_for_each(|_| self.forward(1, &mut position, &mut cache))?;
        }
        Ok(prompt.max(generate) as f64 / begin.elapsed().as_secs_f64())
    }

    /// Passes `n` ids through the model.
    fn forward(&self, n: usize, position: &mut usize, cache: &mut Cache) -> Result<()> {
        // Ids that are words in any vocabulary: those that the other engines get.
        let ids: Vec<u32> = (0..n as u32).map(|i| 3 + 7919 * i % 29000).collect();
        let ids = Tensor::new(&*ids, &Device::Cpu)?.unsqueeze(0)?;
        self.model.forward(&ids, *position, cache)?;
        *position += n;
        Ok(())
    }
}
