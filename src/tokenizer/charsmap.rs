//! SentencePiece's normalisation table (`precompiled_charsmap`): longest match wins.
//!
//! The table is a double-array trie of UTF-8 strings (Yata 2012, "Darts-clone"; 32-bit units) whose
//! values point into a block of replacements that end in NUL: `[size of the trie in bytes: u32 LE][trie]
//! [replacements]`. All links are checked when the table is read, so that a lookup cannot leave it.

use crate::error::{Error, Result};

/// The largest table that is read, in bytes; the one in common use (`nmt_nfkc`) has 240 KB.
const MAX_BYTES: usize = 4 << 20;

/// The longest replacement, in bytes; in the one in common use it has 33.
const MAX_REPLACEMENT: usize = 64;

/// Replacements for some strings.
#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

/// Whether the unit has a value as its first child.
fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// The byte that leads to the unit; more than 255 for a unit that holds a value.
fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xff)
}

/// The distance (by exclusive or) to the unit's children.
fn offset(unit: u32) -> usize {
    (unit as usize >> 10) << ((unit & 1 << 9) >> 6)
}

/// The value of a unit that holds one.
fn value(unit: u32) -> usize {
    unit as usize & 0x7fff_ffff
}

impl Charsmap {
    /// Reads and checks a table.
    ///
    /// # Errors
    ///
    /// If it is cut short, or a link or value in it leads outside.
    pub(super) fn read(blob: &[u8]) -> Result<Self> {
        let bad = || Error::bad_model("the normalisation table `precompiled_charsmap` is damaged");
        let (size, rest) = blob.split_first_chunk::<4>().ok_or_else(bad)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (trie, replacements) = rest.split_at_checked(size).ok_or_else(bad)?;
        let units: Vec<u32> =
            trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let longest = replacements.split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(0);
        if longest > MAX_REPLACEMENT {
            return Err(Error::bad_model(format!(
                "a replacement in `precompiled_charsmap` has {longest} bytes, expected at most {MAX_REPLACEMENT}"
            )));
        }
        if blob.len() > MAX_BYTES || !size.is_multiple_of(4) || units.is_empty() {
            return Err(bad());
        }
        let replacements = std::str::from_utf8(replacements).map_err(|_| bad())?;
        let map = Self { units, replacements: replacements.to_owned() };
        if map.is_sound() { Ok(map) } else { Err(bad()) }
    }

    /// Whether every lookup stays inside: the children of each unit that can be reached are there, and
    /// each value is the beginning of a replacement.
    fn is_sound(&self) -> bool {
        let mut todo = vec![0usize];
        let mut seen = vec![false; self.units.len()];
        while let Some(at) = todo.pop() {
            let unit = self.units[at];
            let children = at ^ offset(unit);
            if (children | 0xff) >= self.units.len() {
                return false;
            }
            if has_leaf(unit) && !self.is_replacement(value(self.units[children])) {
                return false;
            }
            for byte in 1..=255 {
                let child = children ^ byte;
                if label(self.units[child]) as usize == byte
                    && !std::mem::replace(&mut seen[child], true)
                {
                    todo.push(child);
                }
            }
        }
        true
    }

    fn is_replacement(&self, at: usize) -> bool {
        at < self.replacements.len() && self.replacements.is_char_boundary(at)
    }

    /// The longest beginning of `text` in the table: its length in bytes, and what replaces it.
    pub(super) fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut found = None;
        let mut at = offset(self.units[0]);
        for (i, byte) in text.bytes().enumerate() {
            // NUL ends strings in the trie, so no key has one.
            if byte == 0 {
                break;
            }
            at ^= byte as usize;
            let unit = self.units[at];
            if label(unit) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if has_leaf(unit) {
                found = Some((i + 1, value(self.units[at])));
            }
        }
        let (n, from) = found.filter(|(n, _)| text.is_char_boundary(*n))?;
        let rest = &self.replacements[from..];
        Some((n, rest.split('\0').next().unwrap_or(rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie that maps `a` to `bc`: unit 0 → children at 256.., `a` at 256 ^ 97, its value beside.
    fn table() -> Vec<u8> {
        let mut units = vec![0u32; 768];
        units[0] = 256 << 10;
        let a = 256 ^ 97;
        units[a] = 97 | 1 << 8 | ((a ^ 512) as u32) << 10;
        units[512] = 1 << 31 | 2;
        let mut blob = (units.len() as u32 * 4).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        blob.extend(b"x\0bc\0");
        blob
    }

    #[test]
    fn finds_what_is_there() {
        let map = Charsmap::read(&table()).unwrap();
        assert_eq!(map.longest("ab"), Some((1, "bc")));
        assert_eq!(map.longest("ba"), None);
        assert_eq!(map.longest("\0"), None);
        assert_eq!(map.longest(""), None);
    }

    #[test]
    fn damaged_tables_are_refused_and_never_panic() {
        let good = table();
        for cut in [0, 3, 4, 100, 3075] {
            assert!(Charsmap::read(&good[..cut]).is_err(), "{cut}");
        }
        let mut far = good.clone();
        far[4..8].copy_from_slice(&(5000u32 << 10).to_le_bytes());
        assert!(Charsmap::read(&far).is_err());
        let mut state = 1u32;
        for _ in 0..2000 {
            let mut bad = good.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % bad.len();
                bad[at] = (state >> 24) as u8;
            }
            if let Ok(map) = Charsmap::read(&bad) {
                for c in ('\0'..='\u{ff}').chain(['中', '😀']) {
                    map.longest(&format!("{c}a"));
                }
            }
        }
    }
}
