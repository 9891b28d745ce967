//! Instructions that move values: between registers and types, memory, lanes, and into tensor cores.

use super::{
    Access, Alu, Atom, BinI, BoolOp, Class, Cmp, Decoder, Guard, Int, Mma, Num, Op, Result, Round,
    SHARED_WINDOW, ShflMode, Space, Vote, immediate, list, type_size,
};

impl Decoder<'_> {
    pub(super) fn mov(&mut self, ty: &str, a: &[&str]) -> Result<Op> {
        let class = match type_size(ty) {
            Some(8) => Class::Wide,
            Some(_) => Class::Word,
            None if ty == "pred" => {
                let d = self.dest(a[0], Class::Pred)?;
                return match immediate(a[1]) {
                    Some(v) => Ok(Op::Alu(Alu::PredSet { d, value: v != 0 })),
                    None => Ok(Op::Alu(Alu::Pred2 {
                        op: BoolOp::Or,
                        d,
                        a: self.pred(a[1])?,
                        b: self.pred(a[1])?,
                    })),
                };
            }
            None => return self.error(format!("`mov.{ty}` is not supported")),
        };
        if a[0].starts_with('{') {
            let parts = list(a[0]);
            if parts.len() != 2 {
                return self.error("only pairs can be unpacked");
            }
            let (lo, hi) = (self.dest(parts[0], Class::Word)?, self.dest(parts[1], Class::Word)?);
            return Ok(match class {
                Class::Wide => Op::Alu(Alu::Unpack64 { lo, hi, a: self.wide(a[1])? }),
                Class::Word | Class::Pred => Op::Alu(Alu::Unpack32 { lo, hi, a: self.word(a[1])? }),
            });
        }
        if a[1].starts_with('{') {
            let parts = list(a[1]);
            if parts.len() != 2 {
                return self.error("only pairs can be packed");
            }
            let (lo, hi) = (self.word(parts[0])?, self.word(parts[1])?);
            let d = self.dest(a[0], class)?;
            return Ok(if class == Class::Wide {
                Op::Alu(Alu::Pack64 { d, lo, hi })
            } else {
                Op::Alu(Alu::Pack32 { d, lo, hi })
            });
        }
        let d = self.dest(a[0], class)?;
        Ok(match class {
            Class::Wide => Op::Alu(Alu::Mov64 { d, a: self.wide(a[1])? }),
            Class::Word | Class::Pred => Op::Alu(Alu::Mov32 { d, a: self.word(a[1])? }),
        })
    }

    pub(super) fn cvta(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let (d, x) = (self.dest(a[0], Class::Wide)?, self.wide(a[1])?);
        let window = self.wide_const(SHARED_WINDOW);
        let shift = |op| Ok(Op::Alu(Alu::Int2 { op, ty: Int::U64, d, a: x, b: window }));
        match (parts.contains(&"shared"), parts.contains(&"to")) {
            (true, true) => shift(BinI::Sub),
            (true, false) => shift(BinI::Add),
            (false, _) => Ok(Op::Alu(Alu::Mov64 { d, a: x })),
        }
    }

    pub(super) fn cvt(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let n = parts.len();
        let (to, from) = (parts[n - 2], parts[n - 1]);
        if matches!(to, "bf16x2" | "f16x2") && from == "f32" {
            let d = self.dest(a[0], Class::Word)?;
            return Ok(Op::Alu(Alu::CvtPair {
                bf16: to == "bf16x2",
                d,
                hi: self.word(a[1])?,
                lo: self.word(a[2])?,
            }));
        }
        let (Some(to), Some(from)) = (Num::by_name(to), Num::by_name(from)) else {
            return self.error(format!("`{}` is not supported", parts.join(".")));
        };
        let round = match parts[1] {
            "rzi" | "rz" => Round::Zero,
            "rmi" | "rm" => Round::Down,
            "rpi" | "rp" => Round::Up,
            "sat" => return self.error("`cvt.sat` is not supported"),
            _ => Round::Nearest,
        };
        let (d, x) = (self.dest(a[0], to.class())?, self.operand(a[1], from.class())?);
        Ok(Op::Alu(Alu::Cvt { to, from, round, d, a: x }))
    }

    pub(super) fn setp(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let ty = parts[parts.len() - 1];
        let Some(num) = Num::by_name(ty) else {
            return self.error(format!("`setp` of `.{ty}` is not supported"));
        };
        let Some(cmp) = Cmp::by_name(parts[1]) else {
            return self.error(format!("comparison `{}` is not supported", parts[1]));
        };
        let names: Vec<&str> = a[0].split('|').collect();
        let d = self.dest(names[0], Class::Pred)?;
        let inverse = match names.get(1) {
            Some(n) => Some(self.dest(n, Class::Pred)?),
            None => None,
        };
        let combine = match a.get(3) {
            None => None,
            Some(c) => {
                let op = match parts[2] {
                    "and" => BoolOp::And,
                    "or" => BoolOp::Or,
                    "xor" => BoolOp::Xor,
                    other => return self.error(format!("`setp` with `{other}` is not supported")),
                };
                let negated = c.starts_with('!');
                Some((op, Guard { pred: self.pred(c.trim_start_matches('!'))?, negated }))
            }
        };
        let (x, y) = (self.operand(a[1], num.class())?, self.operand(a[2], num.class())?);
        Ok(Op::Alu(Alu::Setp { cmp, ty: num, d, inverse, a: x, b: y, combine }))
    }

    pub(super) fn selp(&mut self, ty: &str, a: &[&str]) -> Result<Op> {
        let wide = type_size(ty) == Some(8);
        let class = if wide { Class::Wide } else { Class::Word };
        let (d, x, y) =
            (self.dest(a[0], class)?, self.operand(a[1], class)?, self.operand(a[2], class)?);
        Ok(Op::Alu(Alu::Selp { wide, d, a: x, b: y, p: self.pred(a[3])? }))
    }

    pub(super) fn memory(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let ty = parts[parts.len() - 1];
        let Some(size) = type_size(ty) else {
            return self.error(format!("memory of type `.{ty}` is not supported"));
        };
        let load = parts[0] != "st";
        let (data, place) = if load { (a[0], a[1]) } else { (a[1], a[0]) };
        if parts.contains(&"param") {
            return self.load_param(ty, size, data, place);
        }
        if parts.contains(&"local") || parts.contains(&"const") {
            return self.error("local and constant memory are not supported");
        }
        let space = if parts.contains(&"global") {
            Space::Global
        } else if parts.contains(&"shared") {
            Space::Shared
        } else {
            Space::Generic
        };
        let (base, wide_base, offset) = self.address(place, space)?;
        let names = list(data);
        let mut regs = [0; 4];
        let mut wide = false;
        for (slot, name) in regs.iter_mut().zip(&names) {
            wide = match self.entry.registers.get(*name) {
                Some(&(class, _)) => class == Class::Wide,
                None => size == 8,
            };
            let class = if wide { Class::Wide } else { Class::Word };
            *slot = if load { self.dest(name, class)? } else { self.operand(name, class)? };
        }
        let access = Access {
            space,
            base,
            wide_base,
            offset,
            size: size as u8,
            count: names.len() as u8,
            signed: ty.starts_with('s'),
            wide,
            regs,
        };
        Ok(if load { Op::Load(Box::new(access)) } else { Op::Store(Box::new(access)) })
    }

    pub(super) fn load_param(
        &mut self,
        ty: &str,
        size: usize,
        data: &str,
        place: &str,
    ) -> Result<Op> {
        let inner = place.trim_matches(['[', ']']);
        let (name, extra) = match inner.split_once('+') {
            Some((n, e)) => (n, immediate(e).unwrap_or(0) as usize),
            None => (inner, 0),
        };
        let Some(param) = self.entry.params.iter().find(|p| p.name == name) else {
            return self.error(format!("no parameter `{name}`"));
        };
        let names = list(data);
        if ty.starts_with('s') || names.len() > 4 {
            return self.error("parameters of this type are not supported");
        }
        if extra + size * names.len() > param.size {
            return self.error(format!("read past the end of parameter `{name}`"));
        }
        let at = (param.offset + extra) as u32;
        // A 32-bit parameter may go to a 64-bit register.
        let wide = matches!(self.entry.registers.get(names[0]), Some(&(Class::Wide, _)));
        let mut d = [0; 4];
        for (d, name) in d.iter_mut().zip(&names) {
            *d = self.dest(name, if wide { Class::Wide } else { Class::Word })?;
        }
        Ok(Op::LoadParam { d, count: names.len() as u8, at, size: size as u8, wide })
    }

    pub(super) fn copy(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        match parts[2] {
            "commit_group" => return Ok(Op::CopyCommit),
            "wait_all" => return Ok(Op::CopyWait { keep: 0 }),
            "wait_group" => match immediate(a[0]) {
                Some(n) if n >= 0 => return Ok(Op::CopyWait { keep: n as u32 }),
                _ => return self.error("`cp.async.wait_group` has no number"),
            },
            "ca" | "cg" => {}
            other => return self.error(format!("`cp.async.{other}` is not supported")),
        }
        let (dst, wide_dst, dst_offset) = self.address(a[0], Space::Shared)?;
        let (src, _, src_offset) = self.address(a[1], Space::Global)?;
        let size = match immediate(a[2]) {
            Some(n @ (4 | 8 | 16)) => n as u8,
            _ => return self.error("`cp.async` copies 4, 8 or 16 bytes"),
        };
        if wide_dst {
            return self.error("`cp.async` wants a 32-bit shared address");
        }
        let n = match a.get(3) {
            Some(n) => self.word(n)?,
            None => self.word_const(u32::from(size)),
        };
        Ok(Op::CopyAsync { dst, dst_offset: dst_offset as i32, src, src_offset, size, n })
    }

    pub(super) fn shuffle(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let mode = match parts[2] {
            "bfly" => ShflMode::Bfly,
            "idx" => ShflMode::Idx,
            "down" => ShflMode::Down,
            "up" => ShflMode::Up,
            other => return self.error(format!("`shfl.{other}` is not supported")),
        };
        let names: Vec<&str> = a[0].split('|').collect();
        let d = self.dest(names[0], Class::Word)?;
        let p = match names.get(1) {
            Some(n) => Some(self.dest(n, Class::Pred)?),
            None => None,
        };
        let (x, lane, clamp) = (self.word(a[1])?, self.word(a[2])?, self.word(a[3])?);
        Ok(Op::Shuffle { mode, d, p, a: x, lane, clamp, mask: self.word(a[4])? })
    }

    pub(super) fn vote(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        if parts[0] == "activemask" {
            return Ok(Op::ActiveMask { d: self.dest(a[0], Class::Word)? });
        }
        let (negated, name) = (a[1].starts_with('!'), a[1].trim_start_matches('!'));
        let p = Guard { pred: self.pred(name)?, negated };
        let mask = self.word(a[2])?;
        let (vote, class) = match parts[2] {
            "ballot" => (Vote::Ballot, Class::Word),
            "any" => (Vote::Any, Class::Pred),
            "all" => (Vote::All, Class::Pred),
            other => return self.error(format!("`vote.{other}` is not supported")),
        };
        Ok(Op::Vote { vote, d: self.dest(a[0], class)?, p, mask })
    }

    pub(super) fn registers_of<const N: usize>(
        &mut self,
        text: &str,
        dest: bool,
    ) -> Result<[u16; N]> {
        let names = list(text);
        let mut regs = [0; N];
        if names.len() != N {
            return self.error(format!("`{text}` should have {N} registers"));
        }
        for (r, name) in regs.iter_mut().zip(names) {
            *r = if dest { self.dest(name, Class::Word)? } else { self.word(name)? };
        }
        Ok(regs)
    }

    pub(super) fn mma(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let shape = ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32"];
        let bf16 = match parts.get(7..) {
            Some(["f16", "f16", "f32"]) => false,
            Some(["bf16", "bf16", "f32"]) => true,
            _ => return self.error(format!("`{}` is not supported", parts.join("."))),
        };
        if parts[..7] != shape {
            return self.error(format!("`{}` is not supported", parts.join(".")));
        }
        Ok(Op::Mma(Box::new(Mma {
            bf16,
            d: self.registers_of(a[0], true)?,
            a: self.registers_of(a[1], false)?,
            b: self.registers_of(a[2], false)?,
            c: self.registers_of(a[3], false)?,
        })))
    }

    pub(super) fn ldmatrix(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let count = match list(a[0]).len() {
            n @ (1 | 2 | 4) if parts.contains(&format!("x{n}").as_str()) => n,
            _ => return self.error("`ldmatrix` has a wrong number of registers"),
        };
        let mut d = [0; 4];
        for (r, name) in d.iter_mut().zip(list(a[0])) {
            *r = self.dest(name, Class::Word)?;
        }
        let (base, wide_base, offset) = self.address(a[1], Space::Shared)?;
        if wide_base {
            return self.error("`ldmatrix` wants a 32-bit shared address");
        }
        Ok(Op::LdMatrix {
            count: count as u8,
            trans: parts.contains(&"trans"),
            d,
            base,
            offset: offset as i32,
        })
    }

    pub(super) fn atom(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let ty = parts[parts.len() - 1];
        let has = |w: &str| parts.contains(&w);
        let op = match ty {
            "f32" if has("add") => Atom::AddF,
            "u32" | "s32" | "b32" if has("add") => Atom::AddI,
            "u32" if has("max") => Atom::MaxU,
            "s32" if has("max") => Atom::MaxS,
            "b32" if has("exch") => Atom::Exch,
            _ => return self.error(format!("`{}` is not supported", parts.join("."))),
        };
        let space = if has("shared") { Space::Shared } else { Space::Global };
        let (d, at) = if parts[0] == "red" { ("_", 0) } else { (a[0], 1) };
        let d = self.dest(d, Class::Word)?;
        let (base, wide_base, offset) = self.address(a[at], space)?;
        let value = self.word(a[at + 1])?;
        let access = Access {
            space,
            base,
            wide_base,
            offset,
            size: 4,
            count: 1,
            signed: false,
            wide: false,
            regs: [value, d, 0, 0],
        };
        Ok(Op::Atomic { op, access: Box::new(access) })
    }
}
