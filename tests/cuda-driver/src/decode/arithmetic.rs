//! Instructions that compute: integers, floats, logic.

use super::{Alu, BinF, BinI, BoolOp, Class, Decoder, Ext, Int, MathF, Op, Result, immediate};

impl Decoder<'_> {
    pub(super) fn arithmetic(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
        let ty = *parts.last().unwrap_or(&"");
        let name = parts[0];
        if ty == "pred" {
            return self.logic(name, a);
        }
        let half2 = match parts {
            ["add", "rn", "f16x2"] => Some(BinF::Add),
            ["sub", "rn", "f16x2"] => Some(BinF::Sub),
            ["mul", "rn", "f16x2"] => Some(BinF::Mul),
            _ => None,
        };
        if let Some(op) = half2 {
            let (d, x) = (self.dest(a[0], Class::Word)?, self.word(a[1])?);
            return Ok(Op::Alu(Alu::Half2 { op, d, a: x, b: self.word(a[2])? }));
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

    pub(super) fn other_integer(&mut self, parts: &[&str], int: Int, a: &[&str]) -> Result<Op> {
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

    pub(super) fn zero(&mut self, class: Class) -> u16 {
        if class == Class::Wide { self.wide_const(0) } else { self.word_const(0) }
    }

    pub(super) fn ones(&mut self, class: Class) -> u16 {
        if class == Class::Wide { self.wide_const(u64::MAX) } else { self.word_const(u32::MAX) }
    }

    /// `mul.wide` and `mad.wide`.
    pub(super) fn widening(&mut self, name: &str, int: Int, a: &[&str]) -> Result<Op> {
        if matches!(int, Int::U16 | Int::S16) {
            let (d, x, y) = (self.dest(a[0], Class::Word)?, self.word(a[1])?, self.word(a[2])?);
            return Ok(Op::Alu(Alu::Int3 { op: Ext::MulWide16, ty: int, d, a: x, b: y, c: x }));
        }
        let (d, x, y) = (self.dest(a[0], Class::Wide)?, self.word(a[1])?, self.word(a[2])?);
        let c = if name == "mad" { self.wide(a[3])? } else { self.wide_const(0) };
        Ok(Op::Alu(Alu::MadWide { signed: int.signed(), d, a: x, b: y, c }))
    }

    pub(super) fn logic(&mut self, name: &str, a: &[&str]) -> Result<Op> {
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

    pub(super) fn float(&mut self, parts: &[&str], a: &[&str]) -> Result<Op> {
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
}
