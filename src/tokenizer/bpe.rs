//! Byte pair encoding: merge the best neighbouring pair until none is left.
//!
//! Sennrich et al. 2016, arXiv:1508.07909, on one stretch of text. A heap holds the pairs, so a
//! stretch of `n` symbols takes `O(n log n)` time and about 20 bytes of memory for each symbol,
//! also where a text has no spaces at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::error::{Error, Result};

/// No symbol: the end of the list.
const NONE: u32 = u32::MAX;

/// Merges pairs; keeps its memory from one stretch of text to the next.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Symbols,
    /// Pairs that may be merged: rank, then place.
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

/// The symbols of a stretch of text: a doubly linked list over byte positions.
#[derive(Default)]
struct Symbols {
    /// Where each symbol begins.
    start: Vec<u32>,
    /// The symbol after each one; [`NONE`] also for symbols that were merged away.
    next: Vec<u32>,
    prev: Vec<u32>,
    /// The length of the text, in bytes.
    len: u32,
}

impl Symbols {
    fn range(&self, i: u32) -> Range<usize> {
        let next = self.next[i as usize];
        let end = if next == NONE { self.len } else { self.start[next as usize] };
        self.start[i as usize] as usize..end as usize
    }

    /// The bytes of symbol `i` and the one after it.
    fn pair(&self, i: u32) -> Option<Range<usize>> {
        let next = self.next[i as usize];
        (next != NONE).then(|| self.range(i).start..self.range(next).end)
    }

    /// Joins symbol `i` with the one after it.
    fn merge(&mut self, i: u32) {
        let gone = self.next[i as usize];
        let after = self.next[gone as usize];
        self.next[i as usize] = after;
        if after != NONE {
            self.prev[after as usize] = i;
        }
        self.next[gone as usize] = NONE;
    }
}

impl Merger {
    /// Merges neighbours of `text` and hands over the symbols that remain, in order.
    ///
    /// `starts` are the byte positions where the first symbols begin, ascending from 0. `rank` tells for
    /// the bytes of a pair whether they may be merged: the lowest rank goes first, the leftmost among
    /// equals. `longest` is the length of the longest symbol that has a rank, in bytes.
    ///
    /// # Errors
    ///
    /// If `text` has 4 GiB or more.
    pub(super) fn merge(
        &mut self,
        text: &[u8],
        starts: impl Iterator<Item = usize>,
        longest: usize,
        rank: impl Fn(Range<usize>) -> Option<u32>,
        mut each: impl FnMut(Range<usize>),
    ) -> Result<()> {
        let Self { symbols, heap } = self;
        let too_long = || Error::bad_input("the text has 4 GiB or more, expected less");
        symbols.len = u32::try_from(text.len()).ok().filter(|n| *n < NONE).ok_or_else(too_long)?;
        symbols.start.clear();
        symbols.start.extend(starts.filter_map(|s| u32::try_from(s).ok()));
        let n = symbols.start.len() as u32;
        if n == 0 {
            return Ok(());
        }
        symbols.next.clear();
        symbols.next.extend((1..n).chain([NONE]));
        symbols.prev.clear();
        symbols.prev.extend([NONE].into_iter().chain(0..n - 1));
        let rank = |range: Range<usize>| if range.len() > longest { None } else { rank(range) };
        // Turning a whole list into a heap takes less time than pushing one by one.
        let mut pairs = std::mem::take(heap).into_vec();
        pairs.clear();
        pairs.extend((0..n).filter_map(|i| Some(Reverse((rank(symbols.pair(i)?)?, i)))));
        *heap = BinaryHeap::from(pairs);
        while let Some(Reverse((r, i))) = heap.pop() {
            // The pair may have changed since it was pushed; then its new form is in the heap as well.
            if symbols.pair(i).and_then(&rank) != Some(r) {
                continue;
            }
            symbols.merge(i);
            for left in [i, symbols.prev[i as usize]] {
                if left != NONE
                    && let Some(r) = symbols.pair(left).and_then(&rank)
                {
                    heap.push(Reverse((r, left)));
                }
            }
        }
        let mut i = 0;
        while i != NONE {
            each(symbols.range(i));
            i = symbols.next[i as usize];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(text: &[u8], vocab: &[&str]) -> Vec<String> {
        let mut out = Vec::new();
        let rank = |r: Range<usize>| {
            vocab.iter().position(|v| v.as_bytes() == &text[r.clone()]).map(|i| i as u32)
        };
        let each = |r: Range<usize>| out.push(String::from_utf8_lossy(&text[r]).into_owned());
        Merger::default().merge(text, 0..text.len(), 8, rank, each).unwrap();
        out
    }

    /// The definition: look at all pairs, merge the best, begin again.
    fn naive(text: &[u8], vocab: &[&str]) -> Vec<String> {
        let mut parts: Vec<String> = text.iter().map(|b| char::from(*b).to_string()).collect();
        loop {
            let best = (0..parts.len().saturating_sub(1))
                .filter_map(|i| {
                    let pair = format!("{}{}", parts[i], parts[i + 1]);
                    vocab.iter().position(|v| *v == pair).map(|r| (r, i))
                })
                .min();
            let Some((_, i)) = best else { return parts };
            let right = parts.remove(i + 1);
            parts[i] += &right;
        }
    }

    #[test]
    fn equals_the_definition() {
        let vocab = ["ab", "bc", "abc", "aa", "aaaa", "ca", "cab", "bb", "abab", "aaa", "bcab"];
        let mut state = 7u32;
        for len in 0..200 {
            let text: Vec<u8> = (0..len % 40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"abc"[(state >> 16) as usize % 3]
                })
                .collect();
            assert_eq!(ranks(&text, &vocab), naive(&text, &vocab), "{text:?}");
        }
    }

    #[test]
    fn a_million_equal_letters_are_no_matter() {
        let text = vec![b'a'; 1 << 20];
        let mut n = 0;
        let rank = |r: Range<usize>| matches!(r.len(), 2 | 4 | 8).then_some(r.len() as u32);
        Merger::default().merge(&text, 0..text.len(), 8, rank, |_| n += 1).unwrap();
        assert_eq!(n, 1 << 17);
    }
}
