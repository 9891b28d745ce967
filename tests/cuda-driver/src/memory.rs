//! Device memory: allocations at addresses of their own, and for every byte who wrote it last.
//!
//! Addresses are never reused and allocations never touch, so a use after free or a row past the end hits
//! nothing and is found. The tag of a byte is 0 (never written), `HOST` (written by a copy or a
//! fill) or the launch and block that stored there: that finds reads of uninitialised memory and blocks
//! that race with each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::fault::{FaultKind, Slip, slip};

/// Tag of memory that the host wrote.
const HOST: u32 = 1;
/// Bits of the tag that hold the block.
const BLOCK_BITS: u32 = 10;
/// First device address.
const FIRST: u64 = 0x7000_0000_0000;
/// Allocations start at multiples of this, as on a real device.
const ALIGN: u64 = 512;

/// One allocation.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) len: usize,
    words: Box<[AtomicU32]>,
    tags: Box<[AtomicU32]>,
}

impl Region {
    fn new(base: u64, len: usize) -> Self {
        let words = (0..len.div_ceil(4)).map(|_| AtomicU32::new(0xFFC0_FFFF)).collect();
        let tags = (0..len).map(|_| AtomicU32::new(0)).collect();
        Self { base, len, words, tags }
    }

    /// Reads `n` ≤ 4 bytes at `at`, inside one word.
    #[inline(always)]
    fn get(&self, at: usize, n: usize) -> u32 {
        let word = self.words[at / 4].load(Relaxed) >> (8 * (at % 4));
        if n == 4 { word } else { word & ((1 << (8 * n)) - 1) }
    }

    /// Writes `n` ≤ 4 bytes at `at`, inside one word.
    #[inline(always)]
    fn set(&self, at: usize, n: usize, value: u32) {
        let word = &self.words[at / 4];
        if n == 4 {
            word.store(value, Relaxed);
        } else {
            let shift = 8 * (at % 4);
            let mask = ((1u32 << (8 * n)) - 1) << shift;
            // Another block may write other bytes of this word at the same time.
            let _ = word
                .fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | (value << shift) & mask));
        }
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        let (words, rest) =
            if at.is_multiple_of(4) { bytes.as_chunks::<4>() } else { (&[][..], bytes) };
        for (i, word) in words.iter().enumerate() {
            self.words[at / 4 + i].store(u32::from_le_bytes(*word), Relaxed);
        }
        let done = at + 4 * words.len();
        for (i, &b) in rest.iter().enumerate() {
            self.set(done + i, 1, u32::from(b));
        }
        for tag in &self.tags[at..at + bytes.len()] {
            tag.store(HOST, Relaxed);
        }
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = self.get(at + i, 1) as u8;
        }
    }
}

/// All memory of one device.
#[derive(Debug)]
pub(crate) struct Memory {
    regions: BTreeMap<u64, Arc<Region>>,
    next: u64,
    pub(crate) used: usize,
    pub(crate) total: usize,
}

impl Memory {
    pub(crate) fn new(total: usize) -> Self {
        Self { regions: BTreeMap::new(), next: FIRST, used: 0, total }
    }

    /// A new allocation, or `None` when the device is full.
    pub(crate) fn alloc(&mut self, len: usize) -> Option<u64> {
        if len == 0 || len > self.total - self.used {
            return None;
        }
        let base = self.next;
        // One empty stretch after each allocation.
        self.next += (len as u64).next_multiple_of(ALIGN) + ALIGN;
        self.used += len;
        self.regions.insert(base, Arc::new(Region::new(base, len)));
        Some(base)
    }

    /// Ends an allocation; false if there is none at `base`.
    pub(crate) fn free(&mut self, base: u64) -> bool {
        let region = self.regions.remove(&base);
        self.used -= region.as_ref().map_or(0, |r| r.len);
        region.is_some()
    }

    fn region(&self, address: u64, len: usize) -> Option<(&Region, usize)> {
        let (&base, region) = self.regions.range(..=address).next_back()?;
        let at = (address - base) as usize;
        (at + len <= region.len).then_some((region, at))
    }

    /// Copies from the host; false if the range is not allocated.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.region(address, bytes.len()).map(|(r, at)| r.copy_in(at, bytes)).is_some()
    }

    /// Copies to the host; false if the range is not allocated.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.region(address, bytes.len()).map(|(r, at)| r.copy_out(at, bytes)).is_some()
    }

    /// Whether every byte of the range was written by someone.
    pub(crate) fn initialised(&self, address: u64, len: usize) -> bool {
        self.region(address, len)
            .is_some_and(|(r, at)| (at..at + len).all(|i| r.tags[i].load(Relaxed) != 0))
    }

    /// What a launch sees: the allocations of this moment.
    pub(crate) fn snapshot(&self, launch: u32) -> Snapshot {
        Snapshot { regions: self.regions.values().cloned().collect(), launch }
    }
}

/// The allocations that one launch may touch.
#[derive(Debug)]
pub(crate) struct Snapshot {
    regions: Vec<Arc<Region>>,
    launch: u32,
}

impl Snapshot {
    /// The tag that stores of `block` leave in this launch.
    pub(crate) fn tag(&self, block: u64) -> u32 {
        let launch = 1 + self.launch % ((1 << (32 - BLOCK_BITS)) - 2);
        launch << BLOCK_BITS | (block as u32 & ((1 << BLOCK_BITS) - 1))
    }

    /// The allocation that holds `len` bytes at `address`, and the offset in it. `hint` remembers the
    /// allocation that the same instruction hit last.
    #[inline(always)]
    fn find(
        &self,
        address: u64,
        len: usize,
        lane: usize,
        hint: &mut u32,
    ) -> Result<(&Region, usize), Box<Slip>> {
        if !address.is_multiple_of(len as u64) {
            return slip(
                FaultKind::Misaligned,
                lane,
                format!("{len} bytes at address {address:#x}"),
            );
        }
        if let Some(region) = self.regions.get(*hint as usize) {
            let at = address.wrapping_sub(region.base);
            if at < region.len as u64 && at as usize + len <= region.len {
                return Ok((region, at as usize));
            }
        }
        self.search(address, len, lane, hint)
    }

    #[cold]
    fn search(
        &self,
        address: u64,
        len: usize,
        lane: usize,
        hint: &mut u32,
    ) -> Result<(&Region, usize), Box<Slip>> {
        let i = self.regions.partition_point(|r| r.base <= address);
        let Some(region) = i.checked_sub(1).map(|i| &self.regions[i]) else {
            return slip(
                FaultKind::GlobalBounds,
                lane,
                format!("no allocation at address {address:#x}"),
            );
        };
        let at = (address - region.base) as usize;
        if at + len > region.len {
            let detail =
                format!("{len} bytes at offset {at} of an allocation of {} bytes", region.len);
            return slip(FaultKind::GlobalBounds, lane, detail);
        }
        *hint = (i - 1) as u32;
        Ok((region, at))
    }

    /// Reads `n` bytes (1, 2, 4, 8 or 16) into `out`, as words.
    #[inline(always)]
    pub(crate) fn load(
        &self,
        address: u64,
        n: usize,
        lane: usize,
        tag: u32,
        hint: &mut u32,
        out: &mut [u32; 4],
    ) -> Result<(), Box<Slip>> {
        let (region, at) = self.find(address, n, lane, hint)?;
        for t in &region.tags[at..at + n] {
            let t = t.load(Relaxed);
            if t == 0 || (t != tag && (t ^ tag) >> BLOCK_BITS == 0) {
                return bad_tag(t, at, lane, "reads");
            }
        }
        if n <= 4 {
            out[0] = region.get(at, n);
        } else {
            for (i, word) in out[..n / 4].iter_mut().enumerate() {
                *word = region.words[at / 4 + i].load(Relaxed);
            }
        }
        Ok(())
    }

    /// Writes `n` bytes (1, 2, 4, 8 or 16).
    #[inline(always)]
    pub(crate) fn store(
        &self,
        address: u64,
        n: usize,
        lane: usize,
        tag: u32,
        hint: &mut u32,
        value: &[u32; 4],
    ) -> Result<(), Box<Slip>> {
        let (region, at) = self.find(address, n, lane, hint)?;
        for t in &region.tags[at..at + n] {
            let old = t.load(Relaxed);
            if old != tag && (old ^ tag) >> BLOCK_BITS == 0 {
                return bad_tag(old, at, lane, "overwrites");
            }
            t.store(tag, Relaxed);
        }
        if n <= 4 {
            region.set(at, n, value[0]);
        } else {
            for (i, &word) in value[..n / 4].iter().enumerate() {
                region.words[at / 4 + i].store(word, Relaxed);
            }
        }
        Ok(())
    }

    /// Checks that `n` bytes can be read, without reading them.
    pub(crate) fn probe(
        &self,
        address: u64,
        n: usize,
        lane: usize,
        hint: &mut u32,
    ) -> Result<(), Box<Slip>> {
        self.find(address, n, lane, hint).map(|_| ())
    }

    /// Replaces one word atomically; returns what was there.
    pub(crate) fn update(
        &self,
        address: u64,
        lane: usize,
        hint: &mut u32,
        f: impl Fn(u32) -> u32,
    ) -> Result<u32, Box<Slip>> {
        let (region, at) = self.find(address, 4, lane, hint)?;
        if region.tags[at].load(Relaxed) == 0 {
            return bad_tag(0, at, lane, "updates");
        }
        let old = region.words[at / 4].fetch_update(Relaxed, Relaxed, |v| Some(f(v)));
        Ok(old.unwrap_or_else(|v| v))
    }
}

#[cold]
fn bad_tag<T>(tag: u32, at: usize, lane: usize, does: &str) -> Result<T, Box<Slip>> {
    if tag == 0 {
        return slip(
            FaultKind::Uninitialised,
            lane,
            format!("{does} global memory at offset {at} that nobody wrote"),
        );
    }
    let other = tag & ((1 << BLOCK_BITS) - 1);
    slip(
        FaultKind::GlobalRace,
        lane,
        format!("{does} offset {at}, which block {other} of the same launch wrote"),
    )
}
