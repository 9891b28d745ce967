//! The formats of weights and of the key/value cache.

/// How weights are kept in memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// As stored in the checkpoint.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the exponent of f32.
    Bf16,
    /// IEEE 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each 32 (8.5 bits per weight).
    Q8,
    /// 4-bit codes of 16 values with a scale for each 16 (4.5 bits per weight); embedding and head in [`Format::Q8`].
    Q4,
}

impl Format {
    /// Bits per weight; `None` where the checkpoint decides.
    #[must_use]
    pub fn bits(self) -> Option<f64> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(32.0),
            Self::Bf16 | Self::F16 => Some(16.0),
            Self::Q8 => Some(8.5),
            Self::Q4 => Some(4.5),
        }
    }
}

/// What one element of the key/value cache is kept as.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvFormat {
    /// f32 where the weights are f32, else f16.
    #[default]
    Auto,
    /// IEEE 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
    /// 8-bit integers: a scale for each 32 elements of a key, and for each value.
    Q8,
}

impl Format {
    /// How the name of a tensor ends that holds a matrix packed in this format. The number is the layout's.
    pub(crate) fn packed_suffix(self) -> String {
        format!("packed_{self}_v1")
    }

    /// The format of a packed tensor, by its name.
    pub(crate) fn of_packed(name: &str) -> Option<Self> {
        let (_, suffix) = name.rsplit_once('.')?;
        Self::ALL.iter().copied().find(|format| suffix == format.packed_suffix())
    }

    /// Every format that weights can have in memory.
    pub const ALL: &'static [Self] = &[Self::F32, Self::Bf16, Self::F16, Self::Q8, Self::Q4];
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8 => "q8",
        })
    }
}
