//! Measures candle-transformers' Llama: `peer-candle FOLDER [f32|bf16|f16] [PROMPT] [TOKENS] [RUNS]`.
//!
//! FOLDER holds `config.json` and `*.safetensors` of a Llama-shaped model. A prompt of PROMPT ids passes
//! in one piece, then TOKENS tokens are taken greedily; that is done once to warm up and RUNS times by the
//! clock. One line of JSON goes to stdout; its rates are medians. The number of threads is that of `RAYON_NUM_THREADS`.
//!
//! Prefill is timed from the ids to the logits of the last one. Decode is timed over TOKENS passes, each
//! with the choice of the token that goes in. Loading and warming up are outside.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use serde_json::json;

/// What is asked for on the command line.
struct Args {
    folder: PathBuf,
    dtype: DType,
    prompt: usize,
    tokens: usize,
    runs: usize,
}

/// The times of one run, and what was generated.
struct Run {
    prefill_s: f64,
    decode_s: f64,
    ids: Vec<u32>,
}

fn main() -> Result<()> {
    let args = args()?;
    let begin = Instant::now();
    let (model, config) = load(&args)?;
    let load_s = begin.elapsed().as_secs_f64();
    let warm_up = run(&model, &config, &args)?;
    let runs = (0..args.runs).map(|_| run(&model, &config, &args)).collect::<Result<Vec<_>>>()?;
    if runs.iter().any(|run| run.ids != warm_up.ids) {
        bail!("two runs generated different tokens");
    }
    let prefill: Vec<f64> = runs.iter().map(|run| args.prompt as f64 / run.prefill_s).collect();
    let decode: Vec<f64> = runs.iter().map(|run| args.tokens as f64 / run.decode_s).collect();
    let report = json!({
        "engine": "candle-transformers 0.11.1",
        "model": args.folder,
        "dtype": format!("{:?}", args.dtype).to_lowercase(),
        "threads": candle_core::utils::get_num_threads(),
        "load_s": load_s,
        "prompt_tokens": args.prompt,
        "completion_tokens": args.tokens,
        "prefill_tok_s": median(&prefill),
        "decode_tok_s": median(&decode),
        "prefill_samples": prefill,
        "decode_samples": decode,
        "token_ids": warm_up.ids,
    });
    println!("{report}");
    Ok(())
}

fn args() -> Result<Args> {
    let mut words = std::env::args().skip(1);
    let Some(folder) = words.next() else {
        bail!("usage: peer-candle FOLDER [f32|bf16|f16] [PROMPT] [TOKENS] [RUNS]");
    };
    let dtype = match words.next().as_deref() {
        None | Some("f32") => DType::F32,
        Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some(other) => bail!("`{other}` is no format, expected f32, bf16 or f16"),
    };
    let mut number = |default: usize| -> Result<usize> {
        let n = words.next().map_or(Ok(default), |word| word.parse().context(word))?;
        if n == 0 { bail!("a count is 0, expected at least 1") } else { Ok(n) }
    };
    Ok(Args {
        folder: folder.into(),
        dtype,
        prompt: number(64)?,
        tokens: number(16)?,
        runs: number(1)?,
    })
}

fn load(args: &Args) -> Result<(Llama, Config)> {
    let path = args.folder.join("config.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let config: LlamaConfig = serde_json::from_slice(&text)?;
    let config = config.into_config(false);
    let files = weights(&args.folder)?;
    // SAFETY: nothing writes to the files while they are measured.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, args.dtype, &Device::Cpu)? };
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

/// Passes the prompt and generates.
fn run(model: &Llama, config: &Config, args: &Args) -> Result<Run> {
    let device = Device::Cpu;
    let mut cache = Cache::new(true, args.dtype, config, &device)?;
    // Ids that are words in any vocabulary, and not all the same.
    let prompt: Vec<u32> =
        (0..args.prompt).map(|i| 5 + (i * 31 % (config.vocab_size - 5)) as u32).collect();
    let begin = Instant::now();
    let mut logits =
        model.forward(&Tensor::new(&*prompt, &device)?.unsqueeze(0)?, 0, &mut cache)?;
    let prefill_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let mut ids = Vec::with_capacity(args.tokens);
    for i in 0..args.tokens {
        let id = logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?;
        ids.push(id);
        let next = Tensor::new(&[id], &device)?.unsqueeze(0)?;
        logits = model.forward(&next, args.prompt + i, &mut cache)?;
    }
    Ok(Run { prefill_s, decode_s: begin.elapsed().as_secs_f64(), ids })
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
