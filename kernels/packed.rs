//! Weights as the linear layers read them: panels of 16 rows, in the order in which they are used.
//!
//! A decoded token reads every weight once, so a format is judged by its bytes, and its layout by one rule: each
//! thread reads one unbroken stream. A **panel** holds [`PANEL`] rows; inside it the columns follow each other, and
//! for each column (or few columns) the values of all its rows lie side by side, one row to a vector lane. A dot product
//! then never has to be summed across lanes, and one activation serves 16 rows. Rows are filled up with zeros to whole
//! panels, the columns of the quantised formats to multiples of [`COLUMNS`].
//!
//! | format | bytes of a panel | bits per weight |
//! |---|---|---|
//! | [`Format::F32`] | for each column 16 f32 | 32 |
//! | [`Format::F16`] | for each column 16 f16 | 16 |
//! | [`Format::Bf16`] | for each column 16 bf16, row `i` before row `i + 8` | 16 |
//! | [`Format::Q8`] | for each 64 columns: 2 × 16 f16 scales, then the 8-bit values | 8.5 |
//! | [`Format::Q4`] | 16 f32 row scales; for each 64 columns 4 × 16 8-bit scales, then the 4-bit codes | 4.5 |
//!
//! All numbers are little-endian. Any bytes of the right length are safe to multiply with, so packed weights may come
//! from a file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a panel.
pub const PANEL: usize = 16;

/// The columns of quantised formats are filled up with zeros to a multiple of this.
pub const COLUMNS: usize = 64;

/// How packed weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8 bits and a 16-bit scale for each 32 columns.
    Q8,
    /// 4-bit codes of 16 values, an 8-bit scale for each 16 columns and a 32-bit scale for each row.
    Q4,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Q4];

    /// The name by which flags and files call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// The format called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bytes of `rows` rows of `cols` columns; nothing where no memory could hold them.
    pub fn packed_len(self, rows: usize, cols: usize) -> Option<usize> {
        self.panel_len(cols)?.checked_mul(rows.div_ceil(PANEL))
    }

    /// Bytes of a panel.
    pub(crate) fn panel_len(self, cols: usize) -> Option<usize> {
        let groups = cols.div_ceil(COLUMNS);
        match self {
            Self::F32 => cols.checked_mul(4 * PANEL),
            Self::F16 | Self::Bf16 => cols.checked_mul(2 * PANEL),
            Self::Q8 => groups.checked_mul(Q8_GROUP),
            Self::Q4 => groups.checked_mul(Q4_GROUP)?.checked_add(Q4_HEAD),
        }
    }
}

/// Bytes of 64 columns of a q8 panel: the scales, then the values.
pub(crate) const Q8_GROUP: usize = 2 * PANEL * 2 + COLUMNS * PANEL;

/// Bytes of 64 columns of a q4 panel: the scales, then the codes.
pub(crate) const Q4_GROUP: usize = 4 * PANEL + COLUMNS * PANEL / 2;

/// Bytes of the row scales at the beginning of a q4 panel.
pub(crate) const Q4_HEAD: usize = 4 * PANEL;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A packed weight matrix `[rows, cols]`. Cheap to clone.
#[derive(Clone)]
pub struct Packed {
    format: Format,
    rows: usize,
    cols: usize,
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Packed {
    /// A matrix over packed bytes that `owner` holds: a block of memory or a mapped file.
    ///
    /// # Errors
    /// When `range` does not hold exactly as many bytes as such a matrix has, or leaves the owner's bytes.
    pub fn new(
        format: Format,
        rows: usize,
        cols: usize,
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Result<Self, String> {
        let want = format.packed_len(rows, cols);
        let have = (*owner).as_ref().get(range.clone()).map(<[u8]>::len);
        if want.is_none() || want != have {
            let have = have.map_or("fewer".to_owned(), |have| have.to_string());
            let want = want.map_or("more than there can be".to_owned(), |want| want.to_string());
            return Err(format!(
                "packed {format} weights of {rows} x {cols}: {have} bytes, expected {want}"
            ));
        }
        Ok(Self { format, rows, cols, owner, range })
    }

    /// How the weights are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed bytes: what a file holds, and what a token reads.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// The panels, one after the other.
    pub(crate) fn panels(&self) -> Panels<'_> {
        let (bytes, count) = (self.bytes(), self.rows.div_ceil(PANEL));
        Panels { bytes, count, len: bytes.len().checked_div(count).unwrap_or(0) }
    }
}

/// The bytes of a matrix, panel by panel.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    bytes: &'a [u8],
    count: usize,
    /// Bytes of each.
    len: usize,
}

impl<'a> Panels<'a> {
    /// How many there are.
    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// The bytes of panel `index`.
    #[inline]
    pub(crate) fn get(self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.len..][..self.len]
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} {} x {})", self.format, self.rows, self.cols)
    }
}
