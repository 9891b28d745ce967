//! JSON of a model's files, where no key may stand twice.
//!
//! Readers disagree about which of two equal keys counts, so a file that holds both means one thing to
//! us and another to the program that made it.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads JSON, and refuses an object that has a key twice, however deep it is.
///
/// ```
/// use tramontane_models::json;
/// assert_eq!(json::parse(r#"{"a": [1]}"#).unwrap()["a"][0], 1);
/// let e = json::parse(r#"{"a": {"b": 1, "b": 2}}"#).unwrap_err();
/// assert!(e.to_string().contains("the key `a.b` stands twice"));
/// ```
///
/// # Errors
///
/// If the text is not JSON, or a key stands twice.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict(None).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Puts bare `Infinity`, `-Infinity` and `NaN` into quotes: Python writes them, JSON does not know them.
pub(crate) fn quote_bare_floats(text: &str) -> String {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        if in_string && c == '\\' {
            let end = rest.char_indices().nth(2).map_or(rest.len(), |(i, _)| i);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        in_string ^= c == '"';
        if let Some(word) = WORDS.iter().find(|word| !in_string && rest.starts_with(**word)) {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// The key of an object, and the objects that it is in.
struct Place<'a> {
    outer: Option<&'a Place<'a>>,
    key: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            write!(f, "{outer}.")?;
        }
        // A hostile key may be long, or steer the terminal.
        let short: String = self.key.chars().take(80).collect();
        write!(f, "{}", short.escape_debug())
    }
}

/// Reads one value at a place.
#[derive(Clone, Copy)]
struct Strict<'a>(Option<&'a Place<'a>>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = object.next_key_seed(Key)? {
            let place = Place { outer: self.0, key: &key };
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{place}` stands twice")));
            }
            let value = object.next_value_seed(Strict(Some(&place)))?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// Reads a key.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<String, D::Error> {
        String::deserialize(reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_common_reader() {
        for text in [
            "null",
            " [true, false, -1, 18446744073709551615, 1e3, -0.0, 1.5] ",
            r#"{"a": {"a": {"a": []}}, "b": "\u00e9\ud83d\ude00", "": {}}"#,
            r#"[{"a": 1}, {"a": 2}]"#,
        ] {
            assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
        for bad in ["", "{", "[1,]", "{} x", r#"{"a" 1}"#, "{1: 2}", "NaN"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_named_with_its_place() {
        for (text, place) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, "`a`"),
            (r#"{"a": {"b": [{"c": 1}, {"c": 1, "c": 2}]}}"#, "`a.b.c`"),
            // However it is written.
            (r#"{"a": 1, "\u0061": 1}"#, "`a`"),
            (r#"{"\u001b[2J": 1, "\u001b[2J": 1}"#, r"`\u{1b}[2J`"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(&format!("the key {place} stands twice")), "{e}");
        }
    }
}
