//! Shared memory of one block, with a shadow that knows for every two bytes who read and wrote them since
//! the last barrier, and whether an asynchronous copy into them is under way.

use crate::fault::{FaultKind, Slip, slip};

/// No thread.
const NOBODY: u16 = u16::MAX;
/// Several threads of several warps.
const MANY: u16 = u16::MAX - 1;
/// Several threads of one warp: this bit and the warp.
const WARP: u16 = 1 << 15;

/// Who touched two bytes, and when.
#[derive(Debug, Clone, Copy)]
struct Cell {
    /// Barrier interval of the last write.
    write_epoch: u32,
    /// Warp synchronisations of the writer's warp before that write.
    write_sync: u32,
    read_epoch: u32,
    read_sync: u32,
    writer: u16,
    reader: u16,
    /// Asynchronous copies under way into these bytes.
    flying: u16,
}

const CLEAN: Cell = Cell {
    write_epoch: 0,
    write_sync: 0,
    read_epoch: 0,
    read_sync: 0,
    writer: NOBODY,
    reader: NOBODY,
    flying: 0,
};

/// Who accesses: thread in the block, and the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) thread: u16,
    /// Barrier interval, from 1.
    pub(crate) epoch: u32,
    /// Warp synchronisations of this thread's warp.
    pub(crate) sync: u32,
}

impl Who {
    fn lane(self) -> usize {
        usize::from(self.thread % 32)
    }

    /// Whether something that thread or group `other` did at (`epoch`, `sync`) is not ordered before now.
    #[inline(always)]
    fn conflicts(self, other: u16, epoch: u32, sync: u32) -> bool {
        if epoch != self.epoch || other == self.thread || other == NOBODY {
            return false;
        }
        let same_warp = match other {
            MANY => false,
            w if w & WARP != 0 => w & !WARP == self.thread / 32,
            t => t / 32 == self.thread / 32,
        };
        !(same_warp && sync < self.sync)
    }
}

/// Shared memory of one block.
#[derive(Debug)]
pub(crate) struct Shared {
    words: Vec<u32>,
    cells: Vec<Cell>,
    len: usize,
}

impl Shared {
    pub(crate) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(4)], cells: vec![CLEAN; len.div_ceil(2)], len }
    }

    /// Forgets everything: a new block begins.
    pub(crate) fn reset(&mut self) {
        self.words.fill(0xFFC0_FFFF);
        self.cells.fill(CLEAN);
    }

    #[inline(always)]
    fn check(&self, at: u64, n: usize, lane: usize) -> Result<usize, Box<Slip>> {
        if !at.is_multiple_of(n as u64) {
            return slip(
                FaultKind::Misaligned,
                lane,
                format!("{n} bytes at shared address {at:#x}"),
            );
        }
        if at >= self.len as u64 || at as usize + n > self.len {
            let detail = format!("{n} bytes at shared address {at} of {}", self.len);
            return slip(FaultKind::SharedBounds, lane, detail);
        }
        Ok(at as usize)
    }

    /// Reads `n` bytes (1, 2, 4, 8 or 16).
    #[inline(always)]
    pub(crate) fn load(
        &mut self,
        at: u64,
        n: usize,
        who: Who,
        out: &mut [u32; 4],
    ) -> Result<(), Box<Slip>> {
        let at = self.check(at, n, who.lane())?;
        for cell in &mut self.cells[at / 2..(at + n).div_ceil(2)] {
            if cell.writer == NOBODY
                || cell.flying > 0
                || who.conflicts(cell.writer, cell.write_epoch, cell.write_sync)
            {
                return bad_read(cell, at, who);
            }
            cell.note_read(who);
        }
        if n < 4 {
            out[0] = self.words[at / 4] >> (8 * (at % 4)) & ((1 << (8 * n)) - 1);
        } else {
            out[..n / 4].copy_from_slice(&self.words[at / 4..(at + n) / 4]);
        }
        Ok(())
    }

    /// Writes `n` bytes (1, 2, 4, 8 or 16).
    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        at: u64,
        n: usize,
        who: Who,
        value: &[u32; 4],
    ) -> Result<(), Box<Slip>> {
        let at = self.check(at, n, who.lane())?;
        for cell in &mut self.cells[at / 2..(at + n).div_ceil(2)] {
            cell.check_write(at, who)?;
            cell.note_write(who);
        }
        self.put(at, n, value);
        Ok(())
    }

    fn put(&mut self, at: usize, n: usize, value: &[u32; 4]) {
        if n < 4 {
            let shift = 8 * (at % 4);
            let mask = ((1u32 << (8 * n)) - 1) << shift;
            let word = &mut self.words[at / 4];
            *word = *word & !mask | (value[0] << shift) & mask;
        } else {
            self.words[at / 4..(at + n) / 4].copy_from_slice(&value[..n / 4]);
        }
    }

    /// Replaces one word atomically; returns what was there. Atomics do not race with each other, so the
    /// word counts as neither read nor written by this thread.
    pub(crate) fn update(
        &mut self,
        at: u64,
        who: Who,
        f: impl Fn(u32) -> u32,
    ) -> Result<u32, Box<Slip>> {
        let at = self.check(at, 4, who.lane())?;
        for cell in &self.cells[at / 2..at / 2 + 2] {
            cell.check_write(at, who)?;
        }
        let old = self.words[at / 4];
        self.words[at / 4] = f(old);
        Ok(old)
    }

    /// An asynchronous copy into `n` bytes begins.
    pub(crate) fn take_off(&mut self, at: u64, n: usize, who: Who) -> Result<(), Box<Slip>> {
        let at = self.check(at, n, who.lane())?;
        for cell in &mut self.cells[at / 2..(at + n) / 2] {
            cell.check_write(at, who)?;
            cell.flying += 1;
        }
        Ok(())
    }

    /// An asynchronous copy into `n` bytes has been waited for.
    pub(crate) fn land(&mut self, at: u64, n: usize, who: Who, value: &[u32; 4]) {
        let at = at as usize;
        for cell in &mut self.cells[at / 2..(at + n) / 2] {
            cell.flying -= 1;
            cell.note_write(who);
        }
        self.put(at, n, value);
    }
}

impl Cell {
    #[inline(always)]
    fn check_write(&self, at: usize, who: Who) -> Result<(), Box<Slip>> {
        if self.flying > 0 {
            return slip(
                FaultKind::InFlight,
                who.lane(),
                format!("write at shared address {at}: a copy is under way"),
            );
        }
        if who.conflicts(self.writer, self.write_epoch, self.write_sync) {
            return race(at, who, "write", "wrote", self.writer);
        }
        if who.conflicts(self.reader, self.read_epoch, self.read_sync) {
            return race(at, who, "write", "read", self.reader);
        }
        Ok(())
    }

    #[inline(always)]
    fn note_write(&mut self, who: Who) {
        self.writer = who.thread;
        self.write_epoch = who.epoch;
        self.write_sync = who.sync;
    }

    #[inline(always)]
    fn note_read(&mut self, who: Who) {
        let warp = WARP | (who.thread / 32);
        self.reader = if self.read_epoch != who.epoch || self.reader == who.thread {
            who.thread
        } else if self.reader == warp
            || (self.reader & WARP == 0 && self.reader / 32 == who.thread / 32)
        {
            warp
        } else {
            MANY
        };
        self.read_epoch = who.epoch;
        self.read_sync = who.sync;
    }
}

#[cold]
fn bad_read<T>(cell: &Cell, at: usize, who: Who) -> Result<T, Box<Slip>> {
    if cell.flying > 0 {
        return slip(
            FaultKind::InFlight,
            who.lane(),
            format!("read at shared address {at}: a copy is under way"),
        );
    }
    if cell.writer == NOBODY {
        return slip(
            FaultKind::Uninitialised,
            who.lane(),
            format!("reads shared address {at} that nobody wrote"),
        );
    }
    race(at, who, "read", "wrote", cell.writer)
}

#[cold]
fn race<T>(at: usize, who: Who, does: &str, did: &str, other: u16) -> Result<T, Box<Slip>> {
    let other = match other {
        MANY => "other warps".to_owned(),
        w if w & WARP != 0 => format!("warp {}", w & !WARP),
        t => format!("thread {t}"),
    };
    let detail =
        format!("{does} at shared address {at}, which {other} {did} since the last barrier");
    slip(FaultKind::SharedRace, who.lane(), detail)
}
