//! Runs the blocks of a launch: each block's warps in turn, from barrier to barrier.

use crate::decode::{Kernel, SHARED_WINDOW};
use crate::fault::{Fault, FaultKind, Slip, a_slip, slip};
use crate::memory::Snapshot;
use crate::op::{Access, Atom, Op, Space};
use crate::shared::{Shared, Who};
use crate::tensor;
use crate::warp::{FULL, Flight, Warp, lanes};

/// Instructions that one warp may execute in one block.
const PATIENCE: u64 = 1 << 26;

/// One launch: the kernel with its parameters and shape.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory, static and dynamic.
    pub(crate) shared: usize,
    pub(crate) memory: &'a Snapshot,
}

/// Why a warp stopped.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Barrier,
    Done,
}

/// A host thread's state: it runs blocks one after another.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    launch: &'a Launch<'a>,
    warps: Vec<Warp>,
    shared: Shared,
    /// For each instruction, the allocation it hit last.
    hints: Vec<u32>,
    tag: u32,
    epoch: u32,
    /// Instructions executed, counted for warps.
    pub(crate) steps: u64,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>) -> Self {
        let threads: u32 = launch.block.iter().product();
        let kernel = launch.kernel;
        Self {
            launch,
            warps: (0..threads.div_ceil(32)).map(|i| Warp::new(kernel, i)).collect(),
            shared: Shared::new(launch.shared),
            hints: vec![0; kernel.code.len()],
            tag: 0,
            epoch: 1,
            steps: 0,
        }
    }

    /// Runs block number `index` of the grid.
    pub(crate) fn run(&mut self, index: u64) -> Result<(), Box<Fault>> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2 and FMA, as just asked.
            return unsafe { self.run_avx2(index) };
        }
        self.run_here(index)
    }

    /// The same code, compiled for a CPU with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(&mut self, index: u64) -> Result<(), Box<Fault>> {
        self.run_here(index)
    }

    #[inline(always)]
    fn run_here(&mut self, index: u64) -> Result<(), Box<Fault>> {
        let [gx, gy, _] = self.launch.grid.map(u64::from);
        let block = [index % gx, index / gx % gy, index / (gx * gy)].map(|i| i as u32);
        self.tag = self.launch.memory.tag(index);
        self.epoch = 1;
        self.shared.reset();
        for warp in &mut self.warps {
            warp.start(self.launch.kernel, block, self.launch.grid, self.launch.block);
        }
        loop {
            let mut waiting = 0;
            for w in 0..self.warps.len() {
                if self.warps[w].live == 0 {
                    continue;
                }
                match self.run_warp(w) {
                    Ok(Stop::Barrier) => waiting += 1,
                    Ok(Stop::Done) => {}
                    Err((slip, pc)) => return Err(self.fault(*slip, pc, w, block)),
                }
            }
            if waiting == 0 {
                return Ok(());
            }
            if let Some(w) = self.warps.iter().position(|w| w.live == 0) {
                let detail = format!("{waiting} warps wait, others have left the kernel");
                return Err(self.fault(
                    Slip { kind: FaultKind::Barrier, lane: 0, detail },
                    0,
                    w,
                    block,
                ));
            }
            self.epoch += 1;
        }
    }

    #[cold]
    fn fault(&self, slip: Slip, pc: usize, warp: usize, block: [u32; 3]) -> Box<Fault> {
        Box::new(Fault {
            kind: slip.kind,
            detail: slip.detail,
            kernel: self.launch.kernel.name.clone(),
            instruction: self.launch.kernel.text[pc].clone(),
            block,
            thread: warp as u32 * 32 + slip.lane,
        })
    }

    /// Runs one warp to its next barrier or its end.
    #[inline(always)]
    fn run_warp(&mut self, w: usize) -> Result<Stop, (Box<Slip>, usize)> {
        let kernel = self.launch.kernel;
        let mut steps = 0;
        loop {
            let warp = &mut self.warps[w];
            let Some(top) = warp.paths.len().checked_sub(1) else {
                self.steps += steps;
                return Ok(Stop::Done);
            };
            let path = warp.paths[top];
            if path.pc == path.meet {
                warp.paths.pop();
                continue;
            }
            let pc = path.pc as usize;
            let instr = &kernel.code[pc];
            let mask = match instr.guard {
                Some(guard) => warp.guarded(guard, path.mask),
                None => path.mask,
            };
            steps += 1;
            if steps > PATIENCE {
                return Err((a_slip(FaultKind::Endless, 0, "an endless loop"), pc));
            }
            if let Op::Branch { target } = instr.op {
                warp.branch(top, target, mask, kernel.meet[pc]);
                continue;
            }
            warp.paths[top].pc += 1;
            if let Op::Exit = instr.op {
                warp.exit(mask);
                continue;
            }
            if mask == 0 {
                continue;
            }
            if let Op::Barrier = instr.op {
                if mask != warp.live {
                    let detail = format!("lanes {mask:#x} of {:#x} reach the barrier", warp.live);
                    return Err((a_slip(FaultKind::Barrier, 0, detail), pc));
                }
                self.steps += steps;
                return Ok(Stop::Barrier);
            }
            self.step(w, &instr.op, mask, pc).map_err(|s| (s, pc))?;
        }
    }

    #[inline(always)]
    fn step(&mut self, w: usize, op: &Op, mask: u32, pc: usize) -> Result<(), Box<Slip>> {
        let warp = &mut self.warps[w];
        match *op {
            Op::Nop | Op::Branch { .. } | Op::Exit | Op::Barrier => {}
            Op::Trap => return slip(FaultKind::Trap, mask.trailing_zeros() as usize, "trap"),
            Op::WarpSync { mask: named } => {
                let named = warp.word(named)[mask.trailing_zeros() as usize];
                warp.together(named, mask)?;
                warp.sync += 1;
            }
            Op::LoadParam { d, count, at, size, wide } => {
                for (i, &d) in d[..usize::from(count)].iter().enumerate() {
                    let at = at as usize + i * usize::from(size);
                    let bytes = &self.launch.params[at..at + usize::from(size)];
                    let value = bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
                    if wide {
                        warp.set64(d, mask, |_| value);
                    } else {
                        warp.set32(d, mask, |_| value as u32);
                    }
                }
            }
            Op::Load(ref access) => self.load(w, access, mask, pc)?,
            Op::Store(ref access) => self.store(w, access, mask, pc)?,
            Op::Atomic { op, ref access } => self.atomic(w, op, access, mask, pc)?,
            Op::CopyAsync { .. } => self.copy(w, op, mask, pc)?,
            Op::CopyCommit => lanes(mask).for_each(|l| warp.groups[l] += 1),
            Op::CopyWait { keep } => self.land(w, keep, mask)?,
            Op::Alu(ref alu) => warp.compute(alu, mask),
            Op::Shuffle { mode, d, p, a, lane, clamp, mask: named } => {
                let named = warp.word(named)[mask.trailing_zeros() as usize];
                warp.together(named, mask)?;
                warp.shuffle(mode, (d, p), [a, lane, clamp], mask)?;
            }
            Op::Vote { vote, d, p, mask: named } => {
                let named = warp.word(named)[mask.trailing_zeros() as usize];
                warp.together(named, mask)?;
                warp.vote(vote, d, p, mask);
            }
            Op::ActiveMask { d } => warp.set32(d, mask, |_| mask),
            Op::Mma(ref m) => {
                warp.together(FULL, mask)?;
                tensor::mma(warp, m);
            }
            Op::LdMatrix { count, trans, d, base, offset } => {
                warp.together(FULL, mask)?;
                let who = Who { thread: (w * 32) as u16, epoch: self.epoch, sync: warp.sync };
                tensor::ldmatrix(
                    warp,
                    &mut self.shared,
                    (usize::from(count), trans),
                    d,
                    (base, offset),
                    who,
                )?;
            }
        }
        Ok(())
    }

    /// The addresses of an access, and whether the first lane's is in shared memory.
    #[inline(always)]
    fn addresses(&self, w: usize, access: &Access, mask: u32) -> ([u64; 32], bool) {
        let warp = &self.warps[w];
        let base = if access.wide_base {
            warp.wide(access.base)
        } else {
            warp.word(access.base).map(u64::from)
        };
        let at = base.map(|a| a.wrapping_add_signed(access.offset));
        match access.space {
            Space::Global => (at, false),
            // Shared addresses are 32 bits wide: sums wrap there.
            Space::Shared => (at.map(|a| a & 0xFFFF_FFFF), true),
            Space::Generic => {
                let first = at[mask.trailing_zeros() as usize];
                let shared = (SHARED_WINDOW..SHARED_WINDOW + (1 << 32)).contains(&first);
                (if shared { at.map(|a| a.wrapping_sub(SHARED_WINDOW)) } else { at }, shared)
            }
        }
    }

    #[inline(always)]
    fn who(&self, w: usize, lane: usize) -> Who {
        Who { thread: (w * 32 + lane) as u16, epoch: self.epoch, sync: self.warps[w].sync }
    }

    #[inline(always)]
    fn load(&mut self, w: usize, access: &Access, mask: u32, pc: usize) -> Result<(), Box<Slip>> {
        let (at, in_shared) = self.addresses(w, access, mask);
        let (size, count) = (usize::from(access.size), usize::from(access.count));
        for lane in lanes(mask) {
            let mut data = [0; 4];
            if in_shared {
                let who = self.who(w, lane);
                self.shared.load(at[lane], size * count, who, &mut data)?;
            } else {
                let hint = &mut self.hints[pc];
                self.launch.memory.load(at[lane], size * count, lane, self.tag, hint, &mut data)?;
            }
            let warp = &mut self.warps[w];
            for (i, &r) in access.regs[..count].iter().enumerate() {
                let value = element(&data, i, size);
                let value = match (access.signed, size) {
                    (true, 1) => value as i8 as i64 as u64,
                    (true, 2) => value as i16 as i64 as u64,
                    (true, 4) => value as i32 as i64 as u64,
                    _ => value,
                };
                if access.wide {
                    warp.wides[usize::from(r)][lane] = value;
                } else {
                    warp.words[usize::from(r)][lane] = value as u32;
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn store(&mut self, w: usize, access: &Access, mask: u32, pc: usize) -> Result<(), Box<Slip>> {
        let (at, in_shared) = self.addresses(w, access, mask);
        let (size, count) = (usize::from(access.size), usize::from(access.count));
        for lane in lanes(mask) {
            let mut data = [0; 4];
            let warp = &self.warps[w];
            for (i, &r) in access.regs[..count].iter().enumerate() {
                let value = if access.wide {
                    warp.wides[usize::from(r)][lane]
                } else {
                    u64::from(warp.words[usize::from(r)][lane])
                };
                put_element(&mut data, i, size, value);
            }
            if in_shared {
                let who = self.who(w, lane);
                self.shared.store(at[lane], size * count, who, &data)?;
            } else {
                let hint = &mut self.hints[pc];
                self.launch.memory.store(at[lane], size * count, lane, self.tag, hint, &data)?;
            }
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        w: usize,
        op: Atom,
        access: &Access,
        mask: u32,
        pc: usize,
    ) -> Result<(), Box<Slip>> {
        let (at, in_shared) = self.addresses(w, access, mask);
        for lane in lanes(mask) {
            let value = self.warps[w].word(access.regs[0])[lane];
            let update = |old: u32| match op {
                Atom::AddI => old.wrapping_add(value),
                Atom::AddF => (f32::from_bits(old) + f32::from_bits(value)).to_bits(),
                Atom::MaxU => old.max(value),
                Atom::MaxS => (old as i32).max(value as i32) as u32,
                Atom::Exch => value,
            };
            let old = if in_shared {
                let who = self.who(w, lane);
                self.shared.update(at[lane], who, update)?
            } else {
                self.launch.memory.update(at[lane], lane, &mut self.hints[pc], update)?
            };
            self.warps[w].words[usize::from(access.regs[1])][lane] = old;
        }
        Ok(())
    }

    /// Begins an asynchronous copy.
    fn copy(&mut self, w: usize, op: &Op, mask: u32, pc: usize) -> Result<(), Box<Slip>> {
        let &Op::CopyAsync { dst, dst_offset, src, src_offset, size, n } = op else {
            return Ok(());
        };
        for lane in lanes(mask) {
            let who = self.who(w, lane);
            let warp = &mut self.warps[w];
            let to = warp.words[usize::from(dst)][lane].wrapping_add_signed(dst_offset);
            let from = warp.wides[usize::from(src)][lane].wrapping_add_signed(src_offset);
            let n = warp.words[usize::from(n)][lane].min(u32::from(size)) as u8;
            let group = warp.groups[lane];
            warp.flights.push(Flight {
                lane: lane as u8,
                group,
                dst: to,
                src: from,
                size,
                n,
                pc: pc as u32,
            });
            if n > 0 {
                self.launch.memory.probe(from, usize::from(size), lane, &mut self.hints[pc])?;
            }
            self.shared.take_off(u64::from(to), usize::from(size), who)?;
        }
        Ok(())
    }

    /// Lands the copies of all groups but the last `keep`. Data moves now: as late as the device may.
    fn land(&mut self, w: usize, keep: u32, mask: u32) -> Result<(), Box<Slip>> {
        let flights = std::mem::take(&mut self.warps[w].flights);
        let mut aloft = Vec::new();
        for f in flights {
            let lane = usize::from(f.lane);
            let done = mask >> lane & 1 != 0 && f.group + keep < self.warps[w].groups[lane];
            if !done {
                aloft.push(f);
                continue;
            }
            let mut data = [0; 4];
            let n = usize::from(f.n);
            if n > 0 {
                let hint = &mut self.hints[f.pc as usize];
                self.launch.memory.load(
                    f.src,
                    usize::from(f.size),
                    lane,
                    self.tag,
                    hint,
                    &mut data,
                )?;
                for i in n..usize::from(f.size) {
                    data[i / 4] &= !(0xFF << (8 * (i % 4)));
                }
            }
            let who = self.who(w, lane);
            self.shared.land(u64::from(f.dst), usize::from(f.size), who, &data);
        }
        self.warps[w].flights = aloft;
        Ok(())
    }
}

/// Value `i` of `size` bytes in `data`.
#[inline(always)]
fn element(data: &[u32; 4], i: usize, size: usize) -> u64 {
    match size {
        8 => u64::from(data[2 * i]) | u64::from(data[2 * i + 1]) << 32,
        4 => u64::from(data[i]),
        2 => u64::from(data[i / 2] >> (16 * (i % 2)) & 0xFFFF),
        _ => u64::from(data[i / 4] >> (8 * (i % 4)) & 0xFF),
    }
}

#[inline(always)]
fn put_element(data: &mut [u32; 4], i: usize, size: usize, value: u64) {
    let v = value as u32;
    match size {
        8 => (data[2 * i], data[2 * i + 1]) = (v, (value >> 32) as u32),
        4 => data[i] = v,
        2 => data[i / 2] |= (v & 0xFFFF) << (16 * (i % 2)),
        _ => data[i / 4] |= (v & 0xFF) << (8 * (i % 4)),
    }
}
