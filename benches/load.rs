//! Loading 187 million parameters: bytes of the bf16 file that are taken in per second, against the read bandwidth of
//! the machine. Formats that are made at load are bound by arithmetic, packed folders by next to nothing.
//!
//! `cargo bench --bench load [-- PART OF A NAME …]`; writes 0.6 GB to the temporary folder.

#![allow(clippy::print_stdout, reason = "a bench prints its results")]

mod common;
#[path = "../tests/common/large.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod large;
#[path = "../tests/common/tiny.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod tiny;

use std::path::Path;

use common::{Machine, report, time, wanted};
use tramontane::quantize::quantize;
use tramontane::{DeviceChoice, Format, LoadOptions, Model};

fn main() -> tramontane::error::Result<()> {
    let machine = Machine::measure();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("bf16");
    std::fs::create_dir(&source).expect("a folder");
    large::write(&source, false, &large::tensors(false));
    for format in [Format::Bf16, Format::F16, Format::F32, Format::Q8, Format::Q4] {
        load(&machine, &format!("load bf16 as {format}"), &source, format, &source)?;
    }
    for format in [Format::Q8, Format::Q4] {
        let name = format!("load a packed folder, {format}");
        if wanted(&name) {
            let packed = folder.path().join(format.to_string());
            quantize(&source.to_string_lossy(), &options(&machine, format), &packed)?;
            load(&machine, &name, &packed, Format::Auto, &source)?;
        }
    }
    Ok(())
}

fn options(machine: &Machine, format: Format) -> LoadOptions {
    let threads = Some(machine.pool.n_threads());
    LoadOptions { format, threads, device: DeviceChoice::Cpu, ..LoadOptions::default() }
}

/// Loads the model in `folder`; counted are the bytes that the weights have in `source`.
fn load(
    machine: &Machine,
    name: &str,
    folder: &Path,
    format: Format,
    source: &Path,
) -> tramontane::error::Result<()> {
    if !wanted(name) {
        return Ok(());
    }
    let (folder, options) = (folder.to_string_lossy(), options(machine, format));
    Model::load(&folder, &options)?;
    let time = time(|| drop(Model::load(&folder, &options)));
    let size = std::fs::metadata(source.join("model.safetensors")).map_or(0, |file| file.len());
    report(name, time, size as f64, "GB/s", machine.bandwidth);
    Ok(())
}
