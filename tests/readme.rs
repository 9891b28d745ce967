//! The table of families in README.md is what the code, the catalogue and the tiny models say.
//!
//! `WRITE_README=1 cargo test --test readme` writes it anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use common::{folder, names};
use safetensors::SafeTensors;
use tramontane_models::{Config, FAMILIES, catalogue};

const BEGIN: &str = "<!-- families: this table is written by tests/readme.rs -->\n";
const END: &str = "<!-- families end -->\n";

/// What a tiny model shows of its family.
struct Tested {
    name: String,
    family: String,
    formats: BTreeSet<&'static str>,
}

fn tested(name: String) -> Tested {
    let folder = folder(&name);
    let native = std::fs::read_to_string(folder.join("params.json")).ok();
    let config = match &native {
        Some(text) => Config::parse_native(text),
        None => Config::parse(&std::fs::read_to_string(folder.join("config.json")).unwrap()),
    };
    let mut formats: BTreeSet<&str> = native.iter().map(|_| "Mistral's own").collect();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if file.ends_with(".safetensors") && file != "expected.safetensors" {
            let bytes = std::fs::read(&path).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            formats.extend(tensors.iter().map(|(_, t)| dtype(&format!("{:?}", t.dtype()))));
        }
    }
    // Scales and norms of 8-bit models are wider; the matrices are what counts.
    if formats.contains("FP8") {
        formats.remove("bf16");
        formats.remove("f32");
    }
    Tested { name, family: config.unwrap().architecture().unwrap(), formats }
}

fn dtype(name: &str) -> &'static str {
    match name {
        "F32" => "f32",
        "BF16" => "bf16",
        "F16" => "f16",
        "F8_E4M3" => "FP8",
        other => panic!("{other} is not in the table"),
    }
}

/// The short names of a family's models; a name that only continues another is left out.
fn models(family: &str) -> String {
    let of_family: Vec<&str> = catalogue::entries()
        .iter()
        .filter(|entry| entry.family == family && entry.runs())
        .map(|entry| &*entry.name)
        .collect();
    let continues = |name: &str| {
        of_family
            .iter()
            .any(|other| name.strip_prefix(other).is_some_and(|rest| rest.starts_with('-')))
    };
    let names: Vec<String> =
        of_family.iter().filter(|name| !continues(name)).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "–".to_owned() } else { names.join(", ") }
}

fn table() -> String {
    let tested: Vec<Tested> = names().into_iter().map(tested).collect();
    let mut text = String::from(
        "| family | models of the [catalogue](models/catalogue.toml) | tested against | stored as |\n|---|---|---|---|\n",
    );
    for (family, _) in FAMILIES {
        let own: Vec<&Tested> = tested.iter().filter(|t| t.family == *family).collect();
        let names: Vec<&str> = own.iter().map(|t| &*t.name).collect();
        let formats: BTreeSet<&str> = own.iter().flat_map(|t| &t.formats).copied().collect();
        let or_dash = |list: Vec<&str>| {
            if list.is_empty() { "–".to_owned() } else { list.join(", ") }
        };
        let (names, formats) = (or_dash(names), or_dash(formats.into_iter().collect()));
        writeln!(text, "| `{family}` | {} | {names} | {formats} |", models(family)).unwrap();
    }
    text
}

#[test]
fn the_table_of_families_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
    if std::env::var_os("WRITE_README").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else if wanted != readme {
        panic!("README.md is not up to date: WRITE_README=1 cargo test --test readme");
    }
}
