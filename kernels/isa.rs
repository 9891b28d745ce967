//! The instruction sets that the kernels are written for, and the choice between them at run time.
//!
//! An [`Isa`] is a proof: it can only be made by asking the CPU, so a kernel that receives one may use its
//! instructions. Nothing else in the crate asks the CPU again.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use crate::cpu::amx::Amx;
#[cfg(target_arch = "x86_64")]
use crate::cpu::avx512::{Avx512, avx512_both_door, avx512_door};
use crate::cpu::rows::{BothKernel, InHalves, RowsKernel, WithHalves};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{Avx2, avx2_door};
use crate::cpu::simd::{Kernel, Portable};

/// The environment variable that forces an instruction set: `portable`, `avx2`, `avx512` or `amx`.
pub const ISA_VARIABLE: &str = "TRAMONTANE_ISA";

/// An instruction set that this CPU is known to have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

/// What there are kernels for. The AVX2 level also needs FMA and F16C, which all such CPUs but a few have; the AVX-512
/// level needs F, BW, DQ, VL and VNNI of it, and uses VBMI, BF16 and AMX where they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// The fastest instruction set that this CPU has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or_else(Self::portable)
    }

    /// Plain Rust that the compiler vectorises for the target's baseline: runs everywhere.
    pub fn portable() -> Self {
        Self(Level::Portable(Portable))
    }

    /// Every instruction set that this CPU has, the slowest first.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::portable()];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(|avx2| Self(Level::Avx2(avx2))));
            if let Some(avx512) = Avx512::detect() {
                all.push(Self(Level::Avx512(avx512)));
                all.extend(avx512.with_amx().map(|amx| Self(Level::Avx512(amx))));
            }
        }
        all
    }

    /// The instruction set that `TRAMONTANE_ISA` names, or the best one where it is not set.
    ///
    /// # Errors
    /// Says what is wrong when the variable names an instruction set that is unknown or that this CPU lacks.
    pub fn from_env() -> Result<Self, String> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) => Self::from_name(&name),
            Err(std::env::VarError::NotPresent) => Ok(Self::best()),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(format!("{ISA_VARIABLE}: not valid unicode"))
            }
        }
    }

    /// The instruction set called `name`, as [`Isa::name`] spells it.
    ///
    /// # Errors
    /// Says what is wrong when the name is unknown or this CPU lacks the instructions.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let known = ["portable", "avx2", "avx512", "amx"];
        if let Some(isa) = Self::available().into_iter().find(|isa| isa.name() == name) {
            return Ok(isa);
        }
        let have: Vec<_> = Self::available().into_iter().map(Self::name).collect();
        let have = have.join(", ");
        Err(match known.contains(&name) {
            true => format!("{ISA_VARIABLE}: this CPU has no {name} (it has: {have})"),
            false => {
                format!("{ISA_VARIABLE}: unknown instruction set {name:?}, expected one of: {have}")
            }
        })
    }

    /// The name by which the environment variable, the bench record and the errors call it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) if avx512.amx().is_some() => "amx",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }

    /// Whether there are kernels that multiply integers.
    pub(crate) fn has_integers(self) -> bool {
        match self.0 {
            Level::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) | Level::Avx512(_) => true,
        }
    }

    /// Whether an instruction widens f16 to f32.
    pub(crate) fn widens_f16(self) -> bool {
        match self.0 {
            Level::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) | Level::Avx512(_) => true,
        }
    }

    /// Whether these kernels sum the products of bytes in 32 bits at once.
    pub(crate) fn has_vnni(self) -> bool {
        match self.0 {
            Level::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => true,
        }
    }

    /// Whether there are kernels that multiply bf16, so that activations are rounded to it.
    pub(crate) fn multiplies_bf16(self) -> bool {
        match self.0 {
            Level::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) => avx512.bf16().is_some(),
        }
    }

    /// Whether there are kernels that multiply whole tiles, for prompts.
    pub(crate) fn multiplies_tiles(self) -> bool {
        match self.0 {
            Level::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) => avx512.amx().is_some(),
        }
    }

    /// The proof of that.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn amx(self) -> Option<Amx> {
        match self.0 {
            Level::Portable(_) | Level::Avx2(_) => None,
            Level::Avx512(avx512) => avx512.amx(),
        }
    }

    /// For tests, every variant that this CPU can run: also the same instruction set as on older CPUs.
    #[cfg(test)]
    pub(crate) fn variants() -> Vec<Self> {
        let mut all = Self::available();
        #[cfg(target_arch = "x86_64")]
        all.extend(Avx512::detect().map(|avx512| Self(Level::Avx512(avx512.without_extras()))));
        all.dedup();
        all
    }

    /// The instruction set with its proof, for kernels that are written for it alone.
    pub(crate) fn level(self) -> Level {
        self.0
    }

    /// Runs a kernel that is written once for every instruction set, compiled for this one.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable(token) => kernel.run(token),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` exists only where the CPU has AVX2, FMA and F16C.
            Level::Avx2(token) => unsafe { avx2_door(token, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; an `Avx512` has an `Avx2`.
            Level::Avx512(token) => unsafe { avx2_door(token.avx2(), kernel) },
        }
    }

    /// Runs a kernel for vectors of eight and of sixteen lanes, compiled for this instruction set. Those of sixteen are used
    /// where they were measured to be faster: on CPUs with AMX.
    #[inline]
    pub(crate) fn run_both<K: BothKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where the CPU has all of its instructions.
            Level::Avx512(token) if token.amx().is_some() => unsafe {
                avx512_both_door(token, kernel)
            },
            _ => self.run(WithHalves(kernel)),
        }
    }

    /// Runs a kernel for the rows of a panel, compiled for this instruction set.
    #[inline]
    pub(crate) fn run_rows<K: RowsKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where the CPU has all of its instructions.
            Level::Avx512(token) => unsafe { avx512_door(token, kernel) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => self.run(InHalves(kernel)),
            Level::Portable(_) => self.run(InHalves(kernel)),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_instruction_set() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = Isa::from_name("mmx").unwrap_err();
        assert!(error.contains("mmx") && error.contains("portable"), "{error}");
    }
}
