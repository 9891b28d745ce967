//! The index of a sharded checkpoint: which file holds which tensor.
//!
//! `model.safetensors.index.json` is an object with `weight_map` (tensor name → file name) and, optionally,
//! `metadata.total_size` (bytes). File names are hostile until shown to be bare names inside the folder.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result, printable};

/// Which tensor is in which file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// The weight files, sorted by name, each once.
    pub shards: Vec<String>,
    /// For each tensor the position of its file in [`Self::shards`]; sorted by name.
    pub tensors: BTreeMap<String, usize>,
    /// The size of all tensors in bytes, as the index claims it.
    pub total_size: Option<u64>,
}

impl Index {
    /// Reads the text of an index.
    ///
    /// ```
    /// use tramontane::checkpoint::index::Index;
    /// let index = Index::parse(r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#)?;
    /// assert_eq!(index.shards, ["one.safetensors", "two.safetensors"]);
    /// assert!(Index::parse(r#"{"weight_map": {"a": "../../secret.safetensors"}}"#).is_err());
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the text is not such an object, names a tensor twice, or names a file outside the folder.
    pub fn parse(text: &str) -> Result<Self> {
        let mut raw = RawIndex::default();
        let mut parser = serde_json::Deserializer::from_str(text);
        let read = Root(&mut raw).deserialize(&mut parser).and_then(|()| parser.end());
        read.map_err(|e| {
            Error::bad_model(format!(
                "the index is not the expected JSON object: {}",
                printable(&e.to_string())
            ))
        })?;
        let Some(map) = raw.weight_map else {
            return Err(Error::bad_model(
                "the index has no `weight_map`, expected tensor names with their files",
            ));
        };
        if map.is_empty() {
            return Err(Error::bad_model("the `weight_map` of the index is empty"));
        }
        Self::build(map, raw.total_size)
    }

    fn build(map: Vec<(String, String)>, total_size: Option<u64>) -> Result<Self> {
        let mut shards: Vec<String> = map.iter().map(|(_, file)| file.clone()).collect();
        shards.sort_unstable();
        shards.dedup();
        for file in &shards {
            check_file_name(file)?;
        }
        let mut tensors = BTreeMap::new();
        for (tensor, file) in map {
            let shard = shards.partition_point(|shard| *shard < file);
            if let Some(other) = tensors.insert(tensor.clone(), shard) {
                return Err(Error::bad_model(format!(
                    "the index names the tensor `{tensor}` twice, in {} and {file}",
                    shards[other]
                )));
            }
        }
        Ok(Self { shards, tensors, total_size })
    }
}

/// Refuses whatever is not a bare name of a safetensors file.
///
/// # Errors
///
/// If `name` could lead out of the model folder, or is not the name of a weight file.
fn check_file_name(name: &str) -> Result<()> {
    let bad = |why: &str| {
        let short: String = name.chars().take(100).collect();
        Error::bad_model(format!("the index names the file \"{short}\", which {why}"))
            .so("only files of the model folder are opened")
    };
    if name.contains(['/', '\\', ':', '\0']) || name == ".." || name == "." {
        return Err(bad("is a path that may leave the model folder, expected a bare file name"));
    }
    if name.len() > 255 || name.contains(char::is_control) {
        return Err(bad("is too long or has control characters"));
    }
    if !name.ends_with(".safetensors") {
        return Err(bad("is not a .safetensors file"));
    }
    Ok(())
}

#[derive(Default)]
struct RawIndex {
    weight_map: Option<Vec<(String, String)>>,
    total_size: Option<u64>,
}

struct Root<'a>(&'a mut RawIndex);

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "weight_map" => {
                    if self.0.weight_map.replace(map.next_value::<Pairs>()?.0).is_some() {
                        return Err(de::Error::custom("`weight_map` stands twice"));
                    }
                }
                "metadata" => self.0.total_size = map.next_value::<IndexMetadata>()?.0,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// `weight_map`, with every pair kept, so that a tensor that stands twice can be told.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`weight_map` as an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// `metadata.total_size`: only ever compared and reported, so anything else there is passed over.
struct IndexMetadata(Option<u64>);

impl<'de> Deserialize<'de> for IndexMetadata {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let size = value.get("total_size").and_then(|size| {
            // Some writers give 1.5e10.
            size.as_u64().or_else(|| size.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
        });
        Ok(Self(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, words: &[&str]) {
        let message = Index::parse(text).expect_err("the index must be refused").to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in:\n{message}");
        }
    }

    #[test]
    fn an_index_gives_each_tensor_its_file() {
        let text = r#"{"metadata": {"total_size": 12, "format": {"x": []}}, "other": [[1]],
            "weight_map": {"c": "2.safetensors", "a": "1.safetensors", "b": "2.safetensors"}}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!(index.shards, ["1.safetensors", "2.safetensors"]);
        let shards: Vec<usize> = index.tensors.values().copied().collect();
        assert_eq!(shards, [0, 1, 1]);
        assert_eq!(index.total_size, Some(12));
    }

    #[test]
    fn a_strange_total_size_is_passed_over() {
        for (size, expected) in
            [("1.5e3", Some(1500)), ("-1", None), ("\"x\"", None), ("null", None)]
        {
            let text = format!(
                r#"{{"metadata": {{"total_size": {size}}}, "weight_map": {{"a": "1.safetensors"}}}}"#
            );
            assert_eq!(Index::parse(&text).unwrap().total_size, expected, "{size}");
        }
    }

    #[test]
    fn file_names_cannot_leave_the_folder() {
        for name in [
            "../../etc/passwd",
            "/etc/passwd",
            "sub/../../x.safetensors",
            "..\\\\x.safetensors",
            "..",
            "C:x.safetensors",
        ] {
            refused(
                &format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#),
                &["leave the model folder"],
            );
        }
        refused(r#"{"weight_map": {"a": "x\u0000.safetensors"}}"#, &["leave the model folder"]);
        refused(r#"{"weight_map": {"a": "\u001b[2J.safetensors"}}"#, &["control characters"]);
        refused(
            r#"{"weight_map": {"a": "config.json"}}"#,
            &["config.json", "not a .safetensors file"],
        );
        refused(r#"{"weight_map": {"a": ""}}"#, &["not a .safetensors file"]);
    }

    #[test]
    fn anything_but_an_index_is_refused() {
        refused("", &["JSON"]);
        refused("[]", &["an object with `weight_map`"]);
        refused("{}", &["no `weight_map`"]);
        refused(r#"{"weight_map": {}}"#, &["empty"]);
        refused(r#"{"weight_map": ["a"]}"#, &["tensor names to file names"]);
        refused(r#"{"weight_map": {"a": 1}}"#, &["string"]);
        refused(
            r#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#,
            &["`a` twice", "1.safetensors", "2.safetensors"],
        );
        refused(r#"{"weight_map": {}, "weight_map": {}}"#, &["twice"]);
        let deep = "[".repeat(100_000);
        refused(&format!(r#"{{"metadata": {deep}"#), &["JSON"]);
        refused(&format!(r#"{{"other": {deep}"#), &["JSON"]);
    }
}
