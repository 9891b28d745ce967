//! The protocol buffer wire format, as far as a SentencePiece model needs it.
//!
//! A message is a row of fields: a key (number and wire type) and a value. Fields with numbers that
//! nobody asks for are skipped, as the format wants it.

use crate::error::{Error, Result};

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Numbers, booleans and enums (wire type 0).
    Number(u64),
    /// Strings and messages (wire type 2).
    Bytes(&'a [u8]),
    /// 32-bit floats (wire type 5).
    Float(f32),
    /// 64-bit values (wire type 1), of which a SentencePiece model has none.
    Other,
}

impl<'a> Value<'a> {
    /// The bytes of a string or message.
    pub(super) fn bytes(self, field: &str) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Float(_) | Self::Other => Err(wrong_type(field)),
        }
    }

    /// The text of a string.
    pub(super) fn text(self, field: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(field)?)
            .map_err(|_| Error::bad_model(format!("the field `{field}` is not UTF-8")))
    }

    /// A number, boolean or enum.
    pub(super) fn number(self, field: &str) -> Result<u64> {
        match self {
            Self::Number(n) => Ok(n),
            Self::Bytes(_) | Self::Float(_) | Self::Other => Err(wrong_type(field)),
        }
    }

    /// A 32-bit float.
    pub(super) fn float(self, field: &str) -> Result<f32> {
        match self {
            Self::Float(x) => Ok(x),
            Self::Number(_) | Self::Bytes(_) | Self::Other => Err(wrong_type(field)),
        }
    }
}

fn wrong_type(field: &str) -> Error {
    Error::bad_model(format!("the field `{field}` has another type than expected"))
}

/// Reads the fields of a message one after the other.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of the message `bytes`.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(usize::try_from(n).ok()?)?;
        self.rest = rest;
        Some(head)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?)
            }
            5 => Value::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| {
            Error::bad_model("not a SentencePiece model: the file is cut short or damaged")
        });
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_type() {
        let message = [
            0x08, 0x96, 0x01, // field 1, varint 150
            0x12, 0x02, b'o', b'k', // field 2, bytes
            0x1d, 0, 0, 0x80, 0x3f, // field 3, float 1.0
            0x21, 0, 0, 0, 0, 0, 0, 0, 0, // field 4, 64 bits
        ];
        let fields: Vec<_> = Fields::of(&message).map(Result::unwrap).collect();
        assert_eq!(
            fields,
            [
                (1, Value::Number(150)),
                (2, Value::Bytes(b"ok")),
                (3, Value::Float(1.0)),
                (4, Value::Other)
            ]
        );
        assert!(fields[0].1.text("x").is_err());
    }

    #[test]
    fn damaged_messages_are_errors_and_end() {
        let endless = [0xff; 20];
        for bad in [
            &[0x08][..],
            &[0x12, 0x05, b'a'],
            &[0x0b],
            &[0x1d, 0, 0],
            &endless,
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ] {
            let fields: Vec<_> = Fields::of(bad).collect();
            assert_eq!(fields.len(), 1);
            assert!(fields[0].is_err(), "{bad:?}");
        }
    }
}
