//! The decoded instruction set: what [`crate::decode`] writes and [`crate::warp`] executes.
//!
//! Registers are numbers in three files (predicates, words of up to 32 bits, wides of 64). 8- and 16-bit
//! values live in words; their upper bits are not looked at.

use crate::parse::Class;

/// Register number; the file follows from the instruction.
pub(crate) type Reg = u16;
/// Number of a predicate register.
pub(crate) type Pred = u16;

/// One instruction and the predicate that guards it.
#[derive(Debug)]
pub(crate) struct Instr {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
}

/// A predicate, possibly negated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    pub(crate) pred: Pred,
    pub(crate) negated: bool,
}

/// Declares an enum whose variants have PTX names.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $($text:literal)|+),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($variant),+ }
        impl $name {
            pub(crate) fn by_name(name: &str) -> Option<Self> {
                match name { $($($text)|+ => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

named!(
    /// Integer types.
    Int { U8 = "u8" | "b8", S8 = "s8", U16 = "u16" | "b16", S16 = "s16", U32 = "u32" | "b32", S32 = "s32",
          U64 = "u64" | "b64", S64 = "s64" }
);
named!(
    /// All types that conversions and comparisons know.
    Num { U8 = "u8" | "b8", S8 = "s8", U16 = "u16" | "b16", S16 = "s16", U32 = "u32" | "b32", S32 = "s32",
          U64 = "u64" | "b64", S64 = "s64", F16 = "f16", Bf16 = "bf16", F32 = "f32" }
);
named!(
    /// Comparisons; those ending in U also hold when a side is not a number.
    Cmp { Eq = "eq", Ne = "ne", Lt = "lt" | "lo", Le = "le" | "ls", Gt = "gt" | "hi", Ge = "ge" | "hs",
          Equ = "equ", Neu = "neu", Ltu = "ltu", Leu = "leu", Gtu = "gtu", Geu = "geu", Num = "num", Nan = "nan" }
);
named!(
    /// Special registers that are 32 bits wide.
    Special { TidX = "%tid.x", TidY = "%tid.y", TidZ = "%tid.z", NtidX = "%ntid.x", NtidY = "%ntid.y",
              NtidZ = "%ntid.z", CtaX = "%ctaid.x", CtaY = "%ctaid.y", CtaZ = "%ctaid.z", NctaX = "%nctaid.x",
              NctaY = "%nctaid.y", NctaZ = "%nctaid.z", Lane = "%laneid", Warp = "%warpid" }
);

impl Int {
    pub(crate) fn class(self) -> Class {
        if matches!(self, Self::U64 | Self::S64) { Class::Wide } else { Class::Word }
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

impl Num {
    pub(crate) fn class(self) -> Class {
        if matches!(self, Self::U64 | Self::S64) { Class::Wide } else { Class::Word }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinI {
    Add,
    Sub,
    Mul,
    MulHi,
    Div,
    Rem,
    And,
    Or,
    Xor,
    Min,
    Max,
    Shl,
    Shr,
}

/// Integer operations of one to three operands that are not in [`BinI`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ext {
    MadLo,
    Bfe,
    Prmt,
    ShfL,
    ShfR,
    Dp4aS,
    Abs,
    Popc,
    Clz,
    MulWide16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinF {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    /// The magnitude of the second with the sign of the first.
    CopySign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MathF {
    Neg,
    Abs,
    Ex2,
    Lg2,
    Rcp,
    Sqrt,
    Rsqrt,
    Tanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Bfly,
    Idx,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    Any,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    /// Either, told by the address.
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atom {
    AddI,
    AddF,
    MaxU,
    MaxS,
    Exch,
}

/// A load or store of `count` values of `size` bytes at `base + offset`.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) base: Reg,
    /// Whether `base` is a 64-bit register.
    pub(crate) wide_base: bool,
    pub(crate) offset: i64,
    pub(crate) size: u8,
    pub(crate) count: u8,
    /// Sign-extend what is loaded.
    pub(crate) signed: bool,
    /// Whether `regs` are 64-bit registers.
    pub(crate) wide: bool,
    pub(crate) regs: [Reg; 4],
}

/// D = A·B + C for 16×16 by 16×8 tiles, spread over a warp.
#[derive(Debug)]
pub(crate) struct Mma {
    pub(crate) bf16: bool,
    pub(crate) d: [Reg; 4],
    pub(crate) a: [Reg; 4],
    pub(crate) b: [Reg; 2],
    pub(crate) c: [Reg; 4],
}

/// An operation.
#[derive(Debug)]
pub(crate) enum Op {
    Nop,
    Branch {
        target: u32,
    },
    Exit,
    Trap,
    Barrier,
    WarpSync {
        mask: Reg,
    },
    LoadParam {
        d: [Reg; 4],
        count: u8,
        at: u32,
        size: u8,
        wide: bool,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic {
        op: Atom,
        access: Box<Access>,
    },
    CopyAsync {
        dst: Reg,
        dst_offset: i32,
        src: Reg,
        src_offset: i64,
        size: u8,
        n: Reg,
    },
    CopyCommit,
    CopyWait {
        keep: u32,
    },
    Shuffle {
        mode: ShflMode,
        d: Reg,
        p: Option<Pred>,
        a: Reg,
        lane: Reg,
        clamp: Reg,
        mask: Reg,
    },
    Vote {
        vote: Vote,
        d: Reg,
        p: Guard,
        mask: Reg,
    },
    ActiveMask {
        d: Reg,
    },
    Mma(Box<Mma>),
    LdMatrix {
        count: u8,
        trans: bool,
        d: [Reg; 4],
        base: Reg,
        offset: i32,
    },
    /// Registers to registers, lane by lane.
    Alu(Alu),
}

/// An operation on registers. Destinations are `d`; sources are `a`, `b`, `c` in the order of the PTX text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alu {
    Mov32 {
        d: Reg,
        a: Reg,
    },
    Mov64 {
        d: Reg,
        a: Reg,
    },
    Pack32 {
        d: Reg,
        lo: Reg,
        hi: Reg,
    },
    Pack64 {
        d: Reg,
        lo: Reg,
        hi: Reg,
    },
    Unpack32 {
        lo: Reg,
        hi: Reg,
        a: Reg,
    },
    Unpack64 {
        lo: Reg,
        hi: Reg,
        a: Reg,
    },
    PredSet {
        d: Pred,
        value: bool,
    },
    PredNot {
        d: Pred,
        a: Pred,
    },
    Pred2 {
        op: BoolOp,
        d: Pred,
        a: Pred,
        b: Pred,
    },
    Int2 {
        op: BinI,
        ty: Int,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Int3 {
        op: Ext,
        ty: Int,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Bfi {
        wide: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        pos: Reg,
        len: Reg,
    },
    Lop3 {
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
        table: u8,
    },
    MadWide {
        signed: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Float2 {
        op: BinF,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    /// Two f16 in each word.
    Half2 {
        op: BinF,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Fma {
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Math {
        op: MathF,
        d: Reg,
        a: Reg,
    },
    Cvt {
        to: Num,
        from: Num,
        round: Round,
        d: Reg,
        a: Reg,
    },
    CvtPair {
        bf16: bool,
        d: Reg,
        hi: Reg,
        lo: Reg,
    },
    Setp {
        cmp: Cmp,
        ty: Num,
        d: Pred,
        inverse: Option<Pred>,
        a: Reg,
        b: Reg,
        combine: Option<(BoolOp, Guard)>,
    },
    Selp {
        wide: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        p: Pred,
    },
}
