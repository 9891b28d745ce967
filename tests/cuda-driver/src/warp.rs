//! One warp: 32 lanes in lock step, with a stack of paths for divergence.
//!
//! Registers are rows of 32 lanes, so one instruction is one short loop that the compiler vectorises.

mod arithmetic;

use crate::alu;
use crate::decode::Kernel;
use crate::fault::{FaultKind, Slip, slip};
use crate::op::{BinF, BinI, BoolOp, Cmp, Ext, Guard, Int, Num, Round, ShflMode, Special, Vote};

/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// Lanes that follow one path, up to where they meet the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) pc: u32,
    /// Where this path ends and the one below it goes on.
    pub(crate) meet: u32,
    pub(crate) mask: u32,
}

/// An asynchronous copy under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) lane: u8,
    pub(crate) group: u32,
    pub(crate) dst: u32,
    pub(crate) src: u64,
    pub(crate) size: u8,
    /// Bytes to read; the rest is filled with zeros.
    pub(crate) n: u8,
    pub(crate) pc: u32,
}

/// State of one warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) preds: Vec<u32>,
    pub(crate) words: Vec<[u32; 32]>,
    pub(crate) wides: Vec<[u64; 32]>,
    pub(crate) paths: Vec<Path>,
    /// Lanes that have not left the kernel.
    pub(crate) live: u32,
    /// Warp synchronisations so far.
    pub(crate) sync: u32,
    pub(crate) flights: Vec<Flight>,
    /// Copy groups that each lane has committed.
    pub(crate) groups: [u32; 32],
    pub(crate) index: u32,
}

/// Lane numbers of the bits set in `mask`.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

impl Warp {
    pub(crate) fn new(kernel: &Kernel, index: u32) -> Self {
        let mut warp = Self {
            preds: vec![0; kernel.counts[0]],
            words: vec![[0; 32]; kernel.counts[1]],
            wides: vec![[0; 32]; kernel.counts[2]],
            paths: Vec::new(),
            live: 0,
            sync: 0,
            flights: Vec::new(),
            groups: [0; 32],
            index,
        };
        for &(r, v) in &kernel.words {
            warp.words[usize::from(r)] = [v; 32];
        }
        for &(r, v) in &kernel.wides {
            warp.wides[usize::from(r)] = [v; 32];
        }
        warp
    }

    /// Puts all lanes at the start of the kernel, in block `block` of a `grid` of blocks of `size` threads.
    pub(crate) fn start(
        &mut self,
        kernel: &Kernel,
        block: [u32; 3],
        grid: [u32; 3],
        size: [u32; 3],
    ) {
        let threads = size[0] * size[1] * size[2];
        let first = self.index * 32;
        self.live = if threads - first >= 32 { FULL } else { (1 << (threads - first)) - 1 };
        self.paths.clear();
        self.paths.push(Path { pc: 0, meet: u32::MAX, mask: self.live });
        self.flights.clear();
        (self.sync, self.groups) = (0, [0; 32]);
        for &(r, special) in &kernel.specials {
            self.words[usize::from(r)] = std::array::from_fn(|lane| {
                let t = first + lane as u32;
                match special {
                    Special::TidX => t % size[0],
                    Special::TidY => t / size[0] % size[1],
                    Special::TidZ => t / (size[0] * size[1]),
                    Special::NtidX => size[0],
                    Special::NtidY => size[1],
                    Special::NtidZ => size[2],
                    Special::CtaX => block[0],
                    Special::CtaY => block[1],
                    Special::CtaZ => block[2],
                    Special::NctaX => grid[0],
                    Special::NctaY => grid[1],
                    Special::NctaZ => grid[2],
                    Special::Lane => lane as u32,
                    Special::Warp => self.index,
                }
            });
        }
    }

    /// Lanes of `mask` whose guard holds.
    #[inline(always)]
    pub(crate) fn guarded(&self, guard: Guard, mask: u32) -> u32 {
        let p = self.preds[usize::from(guard.pred)];
        mask & if guard.negated { !p } else { p }
    }

    /// Lanes leave the kernel.
    pub(crate) fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        for path in &mut self.paths {
            path.mask &= !mask;
        }
        while self.paths.last().is_some_and(|p| p.mask == 0) {
            self.paths.pop();
        }
    }

    /// Follows a branch of the lanes in `taken`; `meet` is where both ways meet.
    #[inline(always)]
    pub(crate) fn branch(&mut self, at: usize, target: u32, taken: u32, meet: u32) {
        let path = self.paths[at];
        let stay = path.mask & !taken;
        if stay == 0 {
            self.paths[at].pc = target;
        } else if taken == 0 {
            self.paths[at].pc += 1;
        } else {
            let next = path.pc + 1;
            if path.meet == meet {
                self.paths.pop();
            } else {
                self.paths[at].pc = meet;
            }
            for (pc, mask) in [(next, stay), (target, taken)] {
                if pc != meet {
                    self.paths.push(Path { pc, meet, mask });
                }
            }
        }
    }

    #[inline(always)]
    fn blend<T: Copy>(out: &mut [T; 32], mask: u32, f: impl Fn(usize) -> T) {
        if mask == FULL {
            for (i, o) in out.iter_mut().enumerate() {
                *o = f(i);
            }
        } else {
            for (i, o) in out.iter_mut().enumerate() {
                *o = if mask >> i & 1 != 0 { f(i) } else { *o };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn set32(&mut self, d: u16, mask: u32, f: impl Fn(usize) -> u32) {
        Self::blend(&mut self.words[usize::from(d)], mask, f);
    }

    #[inline(always)]
    pub(crate) fn set64(&mut self, d: u16, mask: u32, f: impl Fn(usize) -> u64) {
        Self::blend(&mut self.wides[usize::from(d)], mask, f);
    }

    #[inline(always)]
    pub(crate) fn set_pred(&mut self, d: u16, mask: u32, value: u32) {
        let p = &mut self.preds[usize::from(d)];
        *p = *p & !mask | value & mask;
    }

    #[inline(always)]
    pub(crate) fn word(&self, r: u16) -> [u32; 32] {
        self.words[usize::from(r)]
    }

    #[inline(always)]
    pub(crate) fn wide(&self, r: u16) -> [u64; 32] {
        self.wides[usize::from(r)]
    }

    /// Checks that every living lane that `named` names is here.
    #[inline(always)]
    pub(crate) fn together(&self, named: u32, mask: u32) -> Result<(), Box<Slip>> {
        let missing = named & self.live & !mask;
        if missing == 0 && mask & !named == 0 {
            return Ok(());
        }
        let lane = missing.trailing_zeros().min(31) as usize;
        slip(
            FaultKind::Divergent,
            lane,
            format!("lanes {named:#x} are named, lanes {mask:#x} are here"),
        )
    }

    #[inline(always)]
    pub(crate) fn shuffle(
        &mut self,
        mode: ShflMode,
        (d, p): (u16, Option<u16>),
        [a, lane, clamp]: [u16; 3],
        mask: u32,
    ) -> Result<(), Box<Slip>> {
        let (x, by, c) = (self.word(a), self.word(lane), self.word(clamp));
        let mut valid = 0;
        let mut out = x;
        for i in lanes(mask) {
            let me = i as u32;
            let (by, segment, clamp) = (by[i] & 31, c[i] >> 8 & 31, c[i] & 31);
            let top = me & segment | clamp & !segment;
            let (from, ok) = match mode {
                ShflMode::Bfly => (me ^ by, (me ^ by) <= top),
                ShflMode::Down => (me + by, me + by <= top),
                ShflMode::Up => (me.wrapping_sub(by), me.wrapping_sub(by) as i32 >= top as i32),
                ShflMode::Idx => {
                    let j = me & segment | by & !segment;
                    (j, j <= top)
                }
            };
            let from = if ok { from & 31 } else { me };
            if mask >> from & 1 == 0 {
                return slip(
                    FaultKind::Divergent,
                    i,
                    format!("reads from lane {from}, which is not here"),
                );
            }
            valid |= u32::from(ok) << i;
            out[i] = x[from as usize];
        }
        self.set32(d, mask, |i| out[i]);
        if let Some(p) = p {
            self.set_pred(p, mask, valid);
        }
        Ok(())
    }

    pub(crate) fn vote(&mut self, vote: Vote, d: u16, p: Guard, mask: u32) {
        let bits = self.guarded(p, mask);
        match vote {
            Vote::Ballot => self.set32(d, mask, |_| bits),
            Vote::Any => self.set_pred(d, mask, if bits != 0 { FULL } else { 0 }),
            Vote::All => self.set_pred(d, mask, if bits == mask { FULL } else { 0 }),
        }
    }
}

/// A logical operation on all lanes at once.
#[inline(always)]
pub(crate) fn logic(op: BoolOp, x: u32, y: u32) -> u32 {
    match op {
        BoolOp::And => x & y,
        BoolOp::Or => x | y,
        BoolOp::Xor => x ^ y,
    }
}
