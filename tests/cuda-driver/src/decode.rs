//! Statements → instructions in a compact form: register numbers instead of names, operands of every
//! kind in registers (immediates and special registers get a register that is filled before a block runs).

use std::collections::HashMap;

use crate::control;
use crate::op::{
    Access, Alu, Atom, BinF, BinI, BoolOp, Cmp, Ext, Guard, Instr, Int, MathF, Mma, Num, Op, Pred,
    Round, ShflMode, Space, Special, Vote,
};
use crate::parse::{Class, Entry, Param, ParseError, Statement, type_size};

/// A decoded kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Most threads a block may have, if the text says.
    pub max_threads: Option<u32>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Instructions.
    pub(crate) code: Vec<Instr>,
    /// For each branch, where its paths meet again (`u32::MAX`: nowhere).
    pub(crate) meet: Vec<u32>,
    /// Registers of each class, constants and special registers included.
    pub(crate) counts: [usize; 3],
    pub(crate) words: Vec<(u16, u32)>,
    pub(crate) wides: Vec<(u16, u64)>,
    pub(crate) specials: Vec<(u16, Special)>,
    /// The text of each instruction, for messages.
    pub(crate) text: Vec<(usize, String)>,
}

/// First address of the shared window in the generic address space.
pub(crate) const SHARED_WINDOW: u64 = 0x10_0000_0000_0000;

pub(crate) fn decode(entry: Entry) -> Result<Kernel> {
    let mut d = Decoder {
        counts: entry.counts,
        words: HashMap::new(),
        wides: HashMap::new(),
        specials: HashMap::new(),
        entry: &entry,
        line: 0,
    };
    let mut code = Vec::with_capacity(entry.code.len() + 1);
    for s in &entry.code {
        d.line = s.line;
        let guard = match &s.guard {
            Some((name, negated)) => Some(Guard { pred: d.pred(name)?, negated: *negated }),
            None => None,
        };
        code.push(Instr { guard, op: d.op(s)? });
    }
    code.push(Instr { guard: None, op: Op::Exit });
    let meet = control::meeting_points(&code);
    let mut text: Vec<_> = entry
        .code
        .iter()
        .map(|s| (s.line, format!("{} {}", s.opcode, s.args.join(", "))))
        .collect();
    text.push((0, "end of the kernel".to_owned()));
    let (words, wides, specials) = (
        d.words.iter().map(|(&v, &r)| (r, v)).collect(),
        d.wides.iter().map(|(&v, &r)| (r, v)).collect(),
        d.specials.iter().map(|(&v, &r)| (r, v)).collect(),
    );
    let counts = d.counts.map(usize::from);
    Ok(Kernel {
        max_threads: entry.max_threads,
        shared_bytes: entry.shared_bytes,
        code,
        meet,
        counts,
        words,
        wides,
        specials,
        text,
        name: entry.name,
        params: entry.params,
    })
}

struct Decoder<'a> {
    entry: &'a Entry,
    counts: [u16; 3],
    words: HashMap<u32, u16>,
    wides: HashMap<u64, u16>,
    specials: HashMap<Special, u16>,
    line: usize,
}

type Result<T> = std::result::Result<T, ParseError>;

impl Decoder<'_> {
    fn error<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(ParseError { line: self.line, what: what.into() })
    }

    fn fresh(&mut self, class: Class) -> u16 {
        let slot = &mut self.counts[class as usize];
        *slot += 1;
        *slot - 1
    }

    fn word_const(&mut self, value: u32) -> u16 {
        if let Some(&r) = self.words.get(&value) {
            return r;
        }
        let r = self.fresh(Class::Word);
        self.words.insert(value, r);
        r
    }

    fn wide_const(&mut self, value: u64) -> u16 {
        if let Some(&r) = self.wides.get(&value) {
            return r;
        }
        let r = self.fresh(Class::Wide);
        self.wides.insert(value, r);
        r
    }

    /// A predicate register.
    fn pred(&self, name: &str) -> Result<Pred> {
        match self.entry.registers.get(name) {
            Some(&(Class::Pred, r)) => Ok(r),
            _ => self.error(format!("`{name}` is not a predicate")),
        }
    }

    /// A register to write, of the class given.
    fn dest(&mut self, name: &str, class: Class) -> Result<u16> {
        if name == "_" {
            return Ok(self.fresh(class));
        }
        match self.entry.registers.get(name) {
            Some(&(c, r)) if c == class => Ok(r),
            _ => self.error(format!("`{name}` is not a register of the right size")),
        }
    }

    /// An operand of up to 32 bits: register, immediate, special register or shared variable.
    fn word(&mut self, name: &str) -> Result<u16> {
        if let Some(&(Class::Word, r)) = self.entry.registers.get(name) {
            return Ok(r);
        }
        if let Some(special) = Special::by_name(name) {
            if let Some(&r) = self.specials.get(&special) {
                return Ok(r);
            }
            let r = self.fresh(Class::Word);
            self.specials.insert(special, r);
            return Ok(r);
        }
        if let Some(&offset) = self.entry.shared.get(name) {
            return Ok(self.word_const(offset));
        }
        match immediate(name) {
            Some(v) => Ok(self.word_const(v as u32)),
            None => self.error(format!("`{name}` is not a 32-bit operand")),
        }
    }

    /// A 64-bit operand: register, immediate or shared variable (as a shared address).
    fn wide(&mut self, name: &str) -> Result<u16> {
        if let Some(&(Class::Wide, r)) = self.entry.registers.get(name) {
            return Ok(r);
        }
        if let Some(&offset) = self.entry.shared.get(name) {
            return Ok(self.wide_const(u64::from(offset)));
        }
        match immediate(name) {
            Some(v) => Ok(self.wide_const(v as u64)),
            None => self.error(format!("`{name}` is not a 64-bit operand")),
        }
    }

    fn operand(&mut self, name: &str, class: Class) -> Result<u16> {
        match class {
            Class::Pred => self.pred(name),
            Class::Word => self.word(name),
            Class::Wide => self.wide(name),
        }
    }

    fn target(&self, name: &str) -> Result<u32> {
        match self.entry.labels.get(name) {
            Some(&i) => Ok(i as u32),
            None => self.error(format!("no label `{name}`")),
        }
    }

    /// `[register+offset]` → space-dependent base register and offset.
    fn address(&mut self, text: &str, space: Space) -> Result<(u16, bool, i64)> {
        let inner = text.trim_start_matches('[').trim_end_matches(']').trim();
        let split = inner.find(['+', '-']).filter(|&i| i > 0);
        let (base, offset) = match split {
            Some(i) => match immediate(inner[i..].trim_start_matches('+')) {
                Some(v) => (inner[..i].trim(), v as i64),
                None => return self.error(format!("`{text}` is not an address")),
            },
            None => (inner, 0),
        };
        match self.entry.registers.get(base) {
            Some(&(Class::Wide, r)) => return Ok((r, true, offset)),
            Some(&(Class::Word, r)) => return Ok((r, false, offset)),
            _ => {}
        }
        match (space, self.entry.shared.get(base)) {
            (Space::Shared, Some(&at)) => Ok((self.word_const(at), false, offset)),
            _ => self.error(format!("`{text}` is not an address")),
        }
    }

    fn op(&mut self, s: &Statement) -> Result<Op> {
        let parts: Vec<&str> = s.opcode.split('.').collect();
        let a: Vec<&str> = s.args.iter().map(String::as_str).collect();
        let ty = *parts.last().unwrap_or(&"");
        match parts[0] {
            "bra" => Ok(Op::Branch { target: self.target(a[0])? }),
            "ret" | "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            "bar" | "barrier" if parts.get(1) == Some(&"warp") => {
                Ok(Op::WarpSync { mask: self.word(a[0])? })
            }
            "bar" | "barrier" if a.len() == 1 => Ok(Op::Barrier),
            "membar" | "fence" => Ok(Op::Nop),
            "ld" | "st" | "ldu" => self.memory(&parts, &a),
            "cp" => self.copy(&parts, &a),
            "mov" => self.mov(ty, &a),
            "cvta" => self.cvta(&parts, &a),
            "cvt" => self.cvt(&parts, &a),
            "setp" => self.setp(&parts, &a),
            "selp" => self.selp(ty, &a),
            "shfl" => self.shuffle(&parts, &a),
            "vote" | "activemask" => self.vote(&parts, &a),
            "mma" => self.mma(&parts, &a),
            "ldmatrix" => self.ldmatrix(&parts, &a),
            "atom" | "red" => self.atom(&parts, &a),
            _ => self.arithmetic(&parts, &a),
        }
    }

    fn arithmetic(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let ty = *parts.last().unwrap_or(&"");
        let name = parts[0];
        if ty == "pred" {
            return self.logic(name, a);
        }
        if parts.contains(&"sat")
            || parts.contains(&"f16x2")
            || ty == "f64"
            || ty == "f16"
            || ty == "bf16"
        {
            return self.error(format!("`{}` is not supported", parts.join(".")));
        }
        if ty == "f32" {
            return self.float(parts, a);
        }
        let Some(int) = Int::by_name(ty) else {
            return self.error(format!("type `.{ty}` is not supported"));
        };
        let class = int.class();
        if parts.contains(&"wide") {
            return self.widening(name, int, a);
        }
        let hi = parts.contains(&"hi");
        let op = match (name, hi) {
            ("add", _) => BinI::Add,
            ("sub", _) => BinI::Sub,
            ("mul", false) => BinI::Mul,
            ("mul", true) => BinI::MulHi,
            ("div", _) => BinI::Div,
            ("rem", _) => BinI::Rem,
            ("and", _) => BinI::And,
            ("or", _) => BinI::Or,
            ("xor", _) => BinI::Xor,
            ("min", _) => BinI::Min,
            ("max", _) => BinI::Max,
            ("shl", _) => BinI::Shl,
            ("shr", _) => BinI::Shr,
            _ => return self.other_integer(parts, int, a),
        };
        let shift = matches!(op, BinI::Shl | BinI::Shr);
        let (d, x) = (self.dest(a[0], class)?, self.operand(a[1], class)?);
        let y = self.operand(a[2], if shift { Class::Word } else { class })?;
        Ok(Op::Alu(Alu::Int2 { op, ty: int, d, a: x, b: y }))
    }

    fn other_integer(&mut self, parts: &[&str], int: Int, a: &[&str]) -> Result<Op> {
        let class = int.class();
        let d = self.dest(
            a[0],
            if parts[0] == "popc" || parts[0] == "clz" { Class::Word } else { class },
        )?;
        let x = self.operand(a[1], class)?;
        let three = |s: &mut Self, ext: Ext, classes: [Class; 2]| {
            Ok(Op::Alu(Alu::Int3 {
                op: ext,
                ty: int,
                d,
                a: x,
                b: s.operand(a[2], classes[0])?,
                c: s.operand(a[3], classes[1])?,
            }))
        };
        match parts[0] {
            "neg" => {
                Ok(Op::Alu(Alu::Int2 { op: BinI::Sub, ty: int, d, a: self.zero(class), b: x }))
            }
            "not" => {
                Ok(Op::Alu(Alu::Int2 { op: BinI::Xor, ty: int, d, a: x, b: self.ones(class) }))
            }
            "abs" => {
                let zero = self.zero(class);
                Ok(Op::Alu(Alu::Int3 { op: Ext::Abs, ty: int, d, a: x, b: zero, c: zero }))
            }
            "popc" if class == Class::Word => {
                Ok(Op::Alu(Alu::Int3 { op: Ext::Popc, ty: int, d, a: x, b: x, c: x }))
            }
            "clz" if class == Class::Word => {
                Ok(Op::Alu(Alu::Int3 { op: Ext::Clz, ty: int, d, a: x, b: x, c: x }))
            }
            "mad" if parts.contains(&"lo") => three(self, Ext::MadLo, [class, class]),
            "bfe" => three(self, Ext::Bfe, [Class::Word, Class::Word]),
            "prmt" if parts.len() == 2 => three(self, Ext::Prmt, [Class::Word, Class::Word]),
            "shf" if parts.contains(&"wrap") => {
                let ext = if parts.contains(&"l") { Ext::ShfL } else { Ext::ShfR };
                three(self, ext, [Class::Word, Class::Word])
            }
            "dp4a" if parts[1] == "s32" && parts[2] == "s32" => {
                three(self, Ext::Dp4aS, [Class::Word, Class::Word])
            }
            "bfi" => {
                let (b, pos) = (self.operand(a[2], class)?, self.word(a[3])?);
                Ok(Op::Alu(Alu::Bfi {
                    wide: class == Class::Wide,
                    d,
                    a: x,
                    b,
                    pos,
                    len: self.word(a[4])?,
                }))
            }
            "lop3" => {
                let Some(table) = immediate(a[4]) else {
                    return self.error("`lop3` has no table");
                };
                let (b, c) = (self.word(a[2])?, self.word(a[3])?);
                Ok(Op::Alu(Alu::Lop3 { d, a: x, b, c, table: table as u8 }))
            }
            _ => self.error(format!("`{}` is not supported", parts.join("."))),
        }
    }

    fn zero(&mut self, class: Class) -> u16 {
        if class == Class::Wide { self.wide_const(0) } else { self.word_const(0) }
    }

    fn ones(&mut self, class: Class) -> u16 {
        if class == Class::Wide { self.wide_const(u64::MAX) } else { self.word_const(u32::MAX) }
    }

    /// `mul.wide` and `mad.wide`.
    fn widening(&mut self, name: &str, int: Int, a: &[&str]) -> Result<Op> {
        if matches!(int, Int::U16 | Int::S16) {
            let (d, x, y) = (self.dest(a[0], Class::Word)?, self.word(a[1])?, self.word(a[2])?);
            return Ok(Op::Alu(Alu::Int3 { op: Ext::MulWide16, ty: int, d, a: x, b: y, c: x }));
        }
        let (d, x, y) = (self.dest(a[0], Class::Wide)?, self.word(a[1])?, self.word(a[2])?);
        let c = if name == "mad" { self.wide(a[3])? } else { self.wide_const(0) };
        Ok(Op::Alu(Alu::MadWide { signed: int.signed(), d, a: x, b: y, c }))
    }

    fn logic(&mut self, name: &str, a: &[&str]) -> Result<Op> {
        let d = self.dest(a[0], Class::Pred)?;
        let x = self.pred(a[1])?;
        let op = match name {
            "and" => BoolOp::And,
            "or" => BoolOp::Or,
            "xor" => BoolOp::Xor,
            "not" => return Ok(Op::Alu(Alu::PredNot { d, a: x })),
            _ => return self.error(format!("`{name}.pred` is not supported")),
        };
        Ok(Op::Alu(Alu::Pred2 { op, d, a: x, b: self.pred(a[2])? }))
    }

    fn float(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let d = self.dest(a[0], Class::Word)?;
        let x = self.word(a[1])?;
        let math = |op| Ok(Op::Alu(Alu::Math { op, d, a: x }));
        let op = match parts[0] {
            "neg" => return math(MathF::Neg),
            "abs" => return math(MathF::Abs),
            "ex2" => return math(MathF::Ex2),
            "lg2" => return math(MathF::Lg2),
            "rcp" => return math(MathF::Rcp),
            "sqrt" => return math(MathF::Sqrt),
            "rsqrt" => return math(MathF::Rsqrt),
            "tanh" => return math(MathF::Tanh),
            "fma" | "mad" if !parts.contains(&"rm") && !parts.contains(&"rp") => {
                return Ok(Op::Alu(Alu::Fma { d, a: x, b: self.word(a[2])?, c: self.word(a[3])? }));
            }
            "add" => BinF::Add,
            "sub" => BinF::Sub,
            "mul" => BinF::Mul,
            "div" => BinF::Div,
            "min" => BinF::Min,
            "max" => BinF::Max,
            "copysign" => BinF::CopySign,
            _ => return self.error(format!("`{}` is not supported", parts.join("."))),
        };
        Ok(Op::Alu(Alu::Float2 { op, d, a: x, b: self.word(a[2])? }))
    }

    fn mov(&mut self, ty: &str, a: &[&str]) -> Result<Op> {
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

    fn cvta(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let (d, x) = (self.dest(a[0], Class::Wide)?, self.wide(a[1])?);
        let window = self.wide_const(SHARED_WINDOW);
        let shift = |op| Ok(Op::Alu(Alu::Int2 { op, ty: Int::U64, d, a: x, b: window }));
        match (parts.contains(&"shared"), parts.contains(&"to")) {
            (true, true) => shift(BinI::Sub),
            (true, false) => shift(BinI::Add),
            (false, _) => Ok(Op::Alu(Alu::Mov64 { d, a: x })),
        }
    }

    fn cvt(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn setp(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn selp(&mut self, ty: &str, a: &[&str]) -> Result<Op> {
        let wide = type_size(ty) == Some(8);
        let class = if wide { Class::Wide } else { Class::Word };
        let (d, x, y) =
            (self.dest(a[0], class)?, self.operand(a[1], class)?, self.operand(a[2], class)?);
        Ok(Op::Alu(Alu::Selp { wide, d, a: x, b: y, p: self.pred(a[3])? }))
    }

    fn memory(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn load_param(&mut self, ty: &str, size: usize, data: &str, place: &str) -> Result<Op> {
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

    fn copy(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn shuffle(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn vote(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn registers_of<const N: usize>(&mut self, text: &str, dest: bool) -> Result<[u16; N]> {
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

    fn mma(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn ldmatrix(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

    fn atom(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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

/// The names in `{a, b}`, or the one name.
fn list(text: &str) -> Vec<&str> {
    text.trim_matches(['{', '}']).split(',').map(str::trim).collect()
}

/// A literal: decimal, hexadecimal, or the bits of a float (`0f3F800000`).
fn immediate(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = digits.trim_end_matches('U');
    let value = if let Some(bits) = digits.strip_prefix("0f").or_else(|| digits.strip_prefix("0F"))
    {
        i128::from(u32::from_str_radix(bits, 16).ok()?)
    } else if let Some(hex) = digits.strip_prefix("0x") {
        i128::from(u64::from_str_radix(hex, 16).ok()?)
    } else {
        digits.parse::<i128>().ok()?
    };
    Some(if negative { -value } else { value })
}
