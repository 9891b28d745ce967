//! Weights packed once and for all: a folder whose matrices need only be copied into memory.
//!
//! The folder is like the one it was made from, but for the weight file: each matrix stands in it as the kernels read
//! it, as bytes under the name of its module and its format (`model.layers.0.mlp.up_proj.packed_q4_v1`); everything
//! else (norms, biases, an embedding that is only looked up) is copied. It is a safetensors file that other tools can
//! list but not use.

use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tramontane_models::spec::{Layer, Mlp};

use crate::checkpoint::{Checkpoint, Layout, TensorData};
use crate::error::{Error, Result};
use crate::files::{MAX_TOKENIZER, ModelFiles};
use crate::model::{LoadOptions, Model, Plan};
use crate::nn::graph;
use crate::nn::weight::Witness;
use crate::ops::cpu::CpuWeight;
use crate::ops::{Cpu, Format, Ops as _};

/// The data of a file begins at a multiple of this, so that panels do not cross cache lines.
const ALIGNMENT: u64 = 4096;

/// Every so many rows of a matrix, one is compared with its source.
const SAMPLED: usize = 16;

/// The names of tensors and the SHA-256 of their bytes.
type Hashes = [(String, [u8; 32])];

/// What was written, and how near it is to its source.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The folder.
    pub folder: PathBuf,
    /// The format of the matrices.
    pub format: String,
    /// Matrices written.
    pub matrices: usize,
    /// Bytes of all weights before.
    pub source_bytes: u64,
    /// Bytes of all weights now.
    pub bytes: u64,
    /// Root of the mean square error of sampled rows, relative to their size, over all matrices.
    pub error: f64,
    /// The same of the matrix where it is largest.
    pub largest_error: f64,
    /// The matrix where it is largest.
    pub largest_error_in: String,
}

/// Packs the weights of the model that `name` tells into the new folder `to`, and reads them back.
///
/// Of the options, those about finding the model, its format, the threads and the progress are obeyed. Matrices pass
/// one after the other: no more than the largest is in memory.
///
/// # Errors
///
/// If `to` holds something already, the model cannot be read, is packed already, or the disk is full.
pub fn quantize(name: &str, options: &LoadOptions, to: &Path) -> Result<Report> {
    let (name, files) = Model::find(name, options)?;
    let plan = Plan::from_files(&name, &files)?;
    if options.strict {
        plan.check_strictly()?;
    }
    let mut progress = |done, total| {
        if let Some(progress) = &options.progress {
            progress.loaded(done, total);
        }
    };
    pack(&plan, &files, options, to, &mut progress)
}

fn pack(
    plan: &Plan,
    files: &ModelFiles,
    options: &LoadOptions,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    let format = plan.format(options.format);
    if plan.checkpoint.names().any(|name| Format::of_packed(name).is_some()) {
        return Err(Error::bad_input("the weights are packed already")
            .at(plan.checkpoint.place())
            .hint("the model that they were made from"));
    }
    make_folder(to)?;
    let name = match plan.checkpoint.layout() {
        Layout::HuggingFace => "model.safetensors",
        Layout::MistralNative => "consolidated.safetensors",
    };
    let device = Cpu::new(options.threads)?;
    let part = to.join(format!("{name}.part"));
    let mut writer = Writer::new(&device, plan, format, &part)?;
    let (architecture, checkpoint) = (&plan.architecture, &plan.checkpoint);
    graph::show_weights(&device, architecture, checkpoint, format, &mut writer, progress)?;
    let (report, hashes) = writer.finish(plan, to)?;
    let target = to.join(name);
    std::fs::rename(&part, &target).map_err(|e| Error::io(&target, e))?;
    copy_others(files, checkpoint.layout(), to)?;
    check(to, &hashes)?;
    Ok(report)
}

/// Makes the folder, which must not hold anything.
fn make_folder(to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    let mut entries = std::fs::read_dir(to).map_err(|e| Error::io(to, e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::bad_input("the folder is not empty, expected a new one")
            .at(to.display())
            .hint("another --output")),
    }
}

/// Experts of a layer.
fn n_experts(layer: &Layer) -> Option<usize> {
    match &layer.mlp {
        Some(Mlp::Experts(experts)) => Some(experts.n_experts),
        Some(Mlp::Gated(_) | Mlp::Plain(_)) | None => None,
    }
}

/// Writes weights as they are shown.
struct Writer<'a> {
    device: &'a Cpu,
    format: Format,
    path: PathBuf,
    file: BufWriter<File>,
    /// Where the data begins: the header has room up to here.
    start: u64,
    header: serde_json::Map<String, serde_json::Value>,
    at: u64,
    hashes: Vec<(String, [u8; 32])>,
    /// Written last, so that the matrices stand at multiples of their alignment.
    stored: Vec<TensorData>,
    matrices: usize,
    /// Sums of squares of the errors and of the values.
    sums: (f64, f64),
    largest: (f64, String),
}

impl<'a> Writer<'a> {
    fn new(device: &'a Cpu, plan: &Plan, format: Format, path: &Path) -> Result<Self> {
        let mut file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
        let experts: usize = plan.architecture.layers.iter().filter_map(n_experts).sum();
        let entries = (plan.checkpoint.names().len() + 3 * experts) as u64;
        let longest = plan.checkpoint.names().map(str::len).max().unwrap_or(0) as u64;
        // An entry has its name, its type, its shape and two offsets of at most 20 digits.
        let start = (ALIGNMENT + entries * (longest + 160)).next_multiple_of(ALIGNMENT);
        file.seek(SeekFrom::Start(start)).map_err(|e| Error::io(path, e))?;
        Ok(Self {
            device,
            format,
            path: path.to_owned(),
            file,
            start,
            header: serde_json::Map::new(),
            at: 0,
            hashes: Vec::new(),
            stored: Vec::new(),
            matrices: 0,
            sums: (0.0, 0.0),
            largest: (0.0, String::new()),
        })
    }

    fn write(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        let end = self.at + bytes.len() as u64;
        let dtype = serde_json::to_value(dtype).unwrap_or_default();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [self.at, end]});
        self.header.insert(name.to_owned(), entry);
        self.hashes.push((name.to_owned(), Sha256::digest(bytes).into()));
        self.at = end;
        Ok(())
    }

    /// Compares sampled rows of a packed matrix with what it was made from.
    fn compare(&mut self, name: &str, from: &TensorData, weight: &CpuWeight) -> Result<()> {
        let [rows, cols] = from.shape[..] else { return Ok(()) };
        let ids: Vec<u32> = (0..rows as u32).step_by(SAMPLED).collect();
        let mut got = self.device.buffer(ids.len() * cols)?;
        self.device.embed(weight, &ids, &mut got)?;
        let source = self.device.table(from)?;
        let mut want = self.device.buffer(got.len())?;
        self.device.embed(&source, &ids, &mut want)?;
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = got.iter().zip(&want).map(|(got, want)| square(got - want)).sum();
        let size: f64 = want.iter().copied().map(square).sum();
        self.sums = (self.sums.0 + error, self.sums.1 + size);
        let relative = relative(error, size);
        if !relative.is_finite() {
            return Err(from.error(format!("`{name}` holds numbers that are not finite")));
        }
        if relative > self.largest.0 {
            self.largest = (relative, name.to_owned());
        }
        Ok(())
    }

    /// Writes what is left, then the header; gives the report and the hash of each tensor.
    fn finish(mut self, plan: &Plan, to: &Path) -> Result<(Report, Box<Hashes>)> {
        for tensor in std::mem::take(&mut self.stored) {
            self.write(&tensor.name, tensor.dtype, &tensor.shape, &tensor.bytes)?;
        }
        let notes = json!({
            "made_by": concat!("tramontane ", env!("CARGO_PKG_VERSION")),
            "made_from": plan.name,
            "packed": self.format.to_string(),
        });
        self.header.insert("__metadata__".to_owned(), notes);
        let mut text = serde_json::Value::Object(self.header).to_string().into_bytes();
        let room = (self.start - 8) as usize;
        if text.len() > room {
            let what = format!("the header has {} bytes, expected at most {room}", text.len());
            return Err(Error::bad_model(what).at(self.path.display()));
        }
        text.resize(room, b' ');
        let io = |e| Error::io(&self.path, e);
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&(room as u64).to_le_bytes()).map_err(io)?;
        self.file.write_all(&text).map_err(io)?;
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        let (largest_error, largest_error_in) = self.largest;
        let report = Report {
            folder: to.to_owned(),
            format: self.format.to_string(),
            matrices: self.matrices,
            source_bytes: plan.checkpoint.total_bytes(),
            bytes: self.at,
            error: relative(self.sums.0, self.sums.1),
            largest_error,
            largest_error_in,
        };
        Ok((report, self.hashes.into()))
    }
}

/// The root of `error / size`; 0 where both are.
fn relative(error: f64, size: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}

impl Witness<Cpu> for Writer<'_> {
    fn matrix(&mut self, name: String, from: &TensorData, weight: &CpuWeight) -> Result<()> {
        let Some((format, bytes)) = self.device.packed_bytes(weight) else {
            return Err(from.error(format!("`{}` was not packed", from.name)));
        };
        let name = format!("{name}.{}", format.packed_suffix());
        if self.header.contains_key(&name) {
            return Ok(());
        }
        self.compare(&name, from, weight)?;
        self.matrices += 1;
        self.write(&name, Dtype::U8, &[bytes.len()], bytes)
    }

    fn stored(&mut self, tensor: &TensorData) -> Result<()> {
        if !self.stored.iter().any(|other| other.name == tensor.name) {
            self.stored.push(tensor.clone());
        }
        Ok(())
    }
}

/// Copies what belongs to a model besides its weights: configuration, tokenizer, templates, licence.
fn copy_others(files: &ModelFiles, layout: Layout, to: &Path) -> Result<()> {
    let copy = |name: &str| -> Result<()> {
        let Some(content) = files.read(name, MAX_TOKENIZER)? else { return Ok(()) };
        let target = to.join(name);
        std::fs::write(&target, content).map_err(|e| Error::io(&target, e))
    };
    let folder = match files {
        ModelFiles::BuiltIn => {
            let names = ["config.json", "generation_config.json", "tokenizer.json"];
            return names.into_iter().try_for_each(copy);
        }
        ModelFiles::Folder { path, .. } => path,
    };
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if belongs(name, layout) && entry.path().is_file() {
            copy(name)?;
        }
    }
    Ok(())
}

/// Whether a file belongs to a model besides its weights.
fn belongs(name: &str, layout: Layout) -> bool {
    // Each layout has a configuration of its own; the other's would not fit the weights.
    let other = match layout {
        Layout::HuggingFace => "params.json",
        Layout::MistralNative => "config.json",
    };
    let kinds = [".json", ".jinja", ".model", ".md"];
    let is_text = kinds.iter().any(|kind| name.ends_with(kind)) || name.starts_with("LICENSE");
    is_text && name != other && !name.ends_with(".safetensors.index.json")
}

/// Reads the written file back: it must open as a model does, and hold what was written.
fn check(folder: &Path, hashes: &Hashes) -> Result<()> {
    let checkpoint = Checkpoint::open(&ModelFiles::folder(folder))?;
    for (name, hash) in hashes {
        let tensor = checkpoint.require(name)?;
        if <[u8; 32]>::from(Sha256::digest(&*tensor.bytes)) != *hash {
            return Err(tensor
                .error(format!("`{name}` reads back differently from what was written"))
                .hint("another disk"));
        }
    }
    Ok(())
}
