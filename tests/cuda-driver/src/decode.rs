//! Statements → instructions in a compact form: register numbers instead of names, operands of every
//! kind in registers (immediates and special registers get a register that is filled before a block runs).

mod arithmetic;
mod transfer;

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
