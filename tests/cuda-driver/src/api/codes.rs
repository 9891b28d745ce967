//! The driver's results, and the names and texts that it gives them.

use std::ffi::CStr;

use super::CuResult;
use crate::fault::FaultKind;

pub(super) const SUCCESS: CuResult = 0;
pub(super) const INVALID_VALUE: CuResult = 1;
pub(super) const OUT_OF_MEMORY: CuResult = 2;
pub(super) const NO_DEVICE: CuResult = 100;
pub(super) const INVALID_DEVICE: CuResult = 101;
pub(super) const INVALID_CONTEXT: CuResult = 201;
pub(super) const INVALID_PTX: CuResult = 218;
pub(super) const INVALID_HANDLE: CuResult = 400;
pub(super) const NOT_FOUND: CuResult = 500;
pub(super) const ILLEGAL_ADDRESS: CuResult = 700;
pub(super) const OUT_OF_RESOURCES: CuResult = 701;
pub(super) const MISALIGNED: CuResult = 716;
pub(super) const LAUNCH_FAILED: CuResult = 719;
pub(super) const NOT_SUPPORTED: CuResult = 801;

pub(super) fn error_text(code: CuResult) -> (&'static CStr, &'static CStr) {
    match code {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        INVALID_PTX => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        ILLEGAL_ADDRESS => {
            (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered")
        }
        OUT_OF_RESOURCES => {
            (c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch")
        }
        MISALIGNED => (c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
        NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        LAUNCH_FAILED => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        _ => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    }
}

/// What a real driver answers after a kernel made this mistake.
pub(super) fn of_fault(kind: FaultKind) -> CuResult {
    match kind {
        FaultKind::Misaligned => MISALIGNED,
        FaultKind::GlobalBounds | FaultKind::Uninitialised => ILLEGAL_ADDRESS,
        FaultKind::SharedBounds
        | FaultKind::SharedRace
        | FaultKind::GlobalRace
        | FaultKind::InFlight
        | FaultKind::Divergent
        | FaultKind::Barrier
        | FaultKind::Endless
        | FaultKind::Trap => LAUNCH_FAILED,
    }
}
