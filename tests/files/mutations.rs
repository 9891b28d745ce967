//! Every value of every configuration, replaced by values that break careless code: the library may refuse the
//! model or run it, but never panics.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tramontane::files::ModelFiles;
use tramontane::{LoadOptions, Model};

/// The tiny models of all families.
fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits");
    let mut models: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models
}

/// A folder with the weights of `model`, whose configuration can be changed.
fn copy(model: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.contains("safetensors") && name != "expected.safetensors" {
            fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    folder
}

/// Every place of a value inside `value`, as a JSON pointer.
fn places(value: &Value, path: &str, out: &mut Vec<String>) {
    let mut go = |key: &str, value: &Value| {
        let path = format!("{path}/{key}");
        out.push(path.clone());
        places(value, &path, out);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| go(key, value)),
        // The first of a list stands for the others.
        Value::Array(list) => list.iter().take(1).for_each(|value| go("0", value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a model does with a few tokens: `Err` if it panicked.
fn run(folder: &Path) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
        let model = Model::from_files("mutated", &ModelFiles::folder(folder), &options)?;
        let mut cache = model.cache()?;
        model.forward(&[1, 2, 3, 4, 5, 6, 7], &mut cache)?;
        model.forward(&[8], &mut cache)
    }));
    match result {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.to_string().is_empty() => Err("the error is empty".to_owned()),
        Ok(Err(_)) => Ok(()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()),
    }
}

#[test]
fn no_value_of_a_configuration_panics() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1 << 20),
        json!(1_u64 << 31),
        json!(1e308),
        json!("x"),
        json!([0, 3]),
        json!({}),
    ];
    let (mut faults, mut tried) = (Vec::new(), 0);
    for model in models() {
        let folder = copy(&model);
        let name =
            ["config.json", "params.json"].into_iter().find(|name| model.join(name).exists());
        let name = name.expect("the model has a configuration");
        // Some hold a bare `Infinity`, which serde does not read.
        let text = fs::read_to_string(model.join(name)).unwrap().replace("Infinity", "1e300");
        let config: Value = serde_json::from_str(&text).unwrap();
        let mut all = Vec::new();
        places(&config, "", &mut all);
        for place in all {
            for value in &values {
                let mut config = config.clone();
                *config.pointer_mut(&place).unwrap() = value.clone();
                fs::write(folder.path().join(name), config.to_string()).unwrap();
                tried += 1;
                if let Err(panic) = run(folder.path()) {
                    faults.push(format!("{}: {place} = {value}: {panic}", model.display()));
                }
            }
        }
    }
    assert!(tried > 9_000, "only {tried} configurations were tried");
    assert!(faults.is_empty(), "{} of {tried}:\n{}", faults.len(), faults.join("\n"));
}
