//! The JSON of a header, read in one pass without a tree: what stands twice is seen, what nests is not followed.

use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

use super::{Entry, Header, MAX_NAME, MAX_RANK};
use crate::error::{Error, Result, printable};

/// Reads the text of a header whose data starts at byte `data_start` of the file.
pub(super) fn read(json: &str, data_start: usize) -> Result<Header> {
    let mut header = Header::default();
    let mut current = None;
    let mut parser = serde_json::Deserializer::from_str(json);
    let object = Object { header: &mut header, current: &mut current, data_start };
    match object.deserialize(&mut parser).and_then(|()| parser.end()) {
        Ok(()) => Ok(header),
        Err(e) => Err(malformed(&e, json, current.as_deref())),
    }
}

/// Our words for what the JSON reader found, with the byte of the file where it stopped.
fn malformed(e: &serde_json::Error, json: &str, tensor: Option<&str>) -> Error {
    let at: usize = 8
        + json.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum::<usize>()
        + e.column();
    let text = e.to_string();
    let found = text.rsplit_once(" at line ").map_or(text.as_str(), |(found, _)| found);
    let what = match e.classify() {
        serde_json::error::Category::Data => match tensor {
            Some(name) => format!("the header entry of `{}` is malformed: {found}", shorten(name)),
            None => format!("the header is malformed: {found}"),
        },
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => format!("the header is not valid JSON: {found}"),
    };
    Error::bad_model(what).at(format!("byte {at} of the header"))
}

/// A name as a message shows it: a hostile one may be a megabyte long.
fn shorten(name: &str) -> String {
    let mut short: String = name.chars().take(80).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    printable(&short)
}

/// Reads the outer object into a [`Header`]; a duplicate tensor is found later, when names are sorted.
struct Object<'a> {
    header: &'a mut Header,
    /// The tensor that is being read, for the message.
    current: &'a mut Option<String>,
    data_start: usize,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                *self.current = Some(name);
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(de::Error::custom("the key stands twice"));
                }
                self.header.metadata = map.next_value::<Metadata>()?.0;
            } else {
                // The name moves through `current` and back, so that it is known when the value is refused.
                let name = self.current.insert(name);
                check_name(name)?;
                let raw = map.next_value::<RawEntry>()?;
                let range = raw.range(self.data_start).map_err(de::Error::custom)?;
                let name = std::mem::take(name);
                let entry = Entry { name, dtype: raw.dtype, shape: raw.shape, range };
                self.header.tensors.push(entry);
            }
            *self.current = None;
        }
        Ok(())
    }
}

fn check_name<E: de::Error>(name: &str) -> Result<(), E> {
    if name.len() > MAX_NAME {
        let found = name.len();
        return Err(E::custom(format!("the name has {found} bytes, expected at most {MAX_NAME}")));
    }
    if name.is_empty() || name.contains(char::is_control) {
        return Err(E::custom("the name is empty or has a control character"));
    }
    Ok(())
}

/// What `__metadata__` holds: texts by key.
struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut texts = Vec::new();
                while let Some(pair) = map.next_entry::<String, String>()? {
                    texts.push(pair);
                }
                let mut keys: Vec<&str> = texts.iter().map(|(key, _)| key.as_str()).collect();
                keys.sort_unstable();
                match keys.windows(2).find(|pair| pair[0] == pair[1]) {
                    Some(pair) => Err(de::Error::custom(format!(
                        "the key `{}` stands twice",
                        shorten(pair[0])
                    ))),
                    None => Ok(Metadata(texts)),
                }
            }
        }
        deserializer.deserialize_map(Texts)
    }
}

/// A tensor's entry as it is written: offsets count from the start of the data.
struct RawEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    offsets: [usize; 2],
}

impl RawEntry {
    /// Where the tensor is in the file, if its shape, dtype and offsets agree.
    fn range(&self, data_start: usize) -> Result<Range<usize>, String> {
        let [start, end] = self.offsets;
        if end < start {
            return Err(format!("the offsets are reversed (from {start} to {end})"));
        }
        let shape = &self.shape;
        let bits = shape
            .iter()
            .try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64))
            .and_then(|n| n.checked_mul(self.dtype.bitsize() as u64))
            .ok_or_else(|| {
                format!("the shape {shape:?} is too large: its size overflows 64 bits")
            })?;
        let dtype = self.dtype;
        if !bits.is_multiple_of(8) {
            return Err(format!("the shape {shape:?} of {dtype:?} does not fill whole bytes"));
        }
        let (found, expected) = (end - start, bits / 8);
        if found as u64 != expected {
            return Err(format!(
                "the offsets give {found} bytes, but shape {shape:?} of {dtype:?} takes {expected}"
            ));
        }
        match (start.checked_add(data_start), end.checked_add(data_start)) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(format!("the offsets (from {start} to {end}) are too large")),
        }
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(dtype_of(&map.next_value::<String>()?)?).is_some(),
                "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<Shape>()?.0).is_some(),
                key => {
                    return Err(de::Error::custom(format!(
                        "it has an unknown key `{}`",
                        shorten(key)
                    )));
                }
            };
            if twice {
                return Err(de::Error::custom(format!("the key `{key}` stands twice")));
            }
        }
        let missing = |key: &str| de::Error::custom(format!("`{key}` is missing"));
        let offsets = offsets.ok_or_else(|| missing("data_offsets"))?;
        let offsets = <[usize; 2]>::try_from(offsets).map_err(|offsets| {
            de::Error::custom(format!("`data_offsets` has {} numbers, expected 2", offsets.len()))
        })?;
        Ok(RawEntry {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets,
        })
    }
}

fn dtype_of<E: de::Error>(name: &str) -> Result<Dtype, E> {
    let deserializer: StrDeserializer<'_, ValueError> = name.into_deserializer();
    Dtype::deserialize(deserializer).map_err(|_| {
        let name = shorten(name);
        E::custom(format!(
            "the dtype \"{name}\" is unknown, expected one such as F32, F16, BF16 or F8_E4M3"
        ))
    })
}

/// A number of a header: 64.0 and -1 are refused in words that fit dimensions and offsets alike.
#[derive(Clone, Copy)]
struct Unsigned(u64);

impl<'de> Deserialize<'de> for Unsigned {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Unsigned;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an unsigned integer")
            }

            fn visit_u64<E>(self, n: u64) -> Result<Unsigned, E> {
                Ok(Unsigned(n))
            }
        }
        deserializer.deserialize_u64(Number)
    }
}

/// The dimensions of a tensor, at most [`MAX_RANK`] of them.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of unsigned integers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let (mut dims, mut rank) = (Vec::new(), 0);
                while let Some(Unsigned(dim)) = seq.next_element()? {
                    rank += 1;
                    if rank <= MAX_RANK {
                        let dim = usize::try_from(dim);
                        dims.push(dim.map_err(|_| de::Error::custom("a dimension is too large"))?);
                    }
                }
                if rank > MAX_RANK {
                    let what = format!("the shape has rank {rank}, expected at most {MAX_RANK}");
                    return Err(de::Error::custom(what));
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}
