//! The GPU of this machine, through its driver: what tests and benches of single kernels need of it.
#![allow(dead_code, reason = "tests and benches use different parts")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self as cu, CUresult};
use tramontane_kernels::cuda::{self, Launch};

/// Whether tests run on the GPU of this machine instead of the emulated one.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os("TRAMONTANE_TEST_GPU").is_some()
}

/// Dynamic shared memory that a kernel may have without asking, bytes.
const FREE_SHARED: u32 = 48 * 1024;

/// An open GPU; what it was asked for is freed with it.
pub(crate) struct Device {
    pub(crate) name: String,
    memory: RefCell<Vec<u64>>,
    /// Modules and their functions, by kernel.
    kernels: RefCell<HashMap<&'static str, (cu::CUmodule, cu::CUfunction)>>,
}

impl Device {
    /// Opens the first GPU.
    pub(crate) fn open() -> Result<Self, String> {
        // SAFETY: opening a library by the names of NVIDIA's driver runs its initialisers, which are trusted.
        if !unsafe { cu::is_culib_present() } {
            return Err("no NVIDIA driver was found (libcuda)".to_owned());
        }
        let (mut device, mut context, mut name) = (0, ptr::null_mut(), [0; 128]);
        // SAFETY: the pointers are valid for what is written; the name is cut to the length given.
        unsafe {
            check(cu::cuInit(0), "starting the driver")?;
            check(cu::cuDeviceGet(&mut device, 0), "opening the first device")?;
            check(cu::cuDeviceGetName(name.as_mut_ptr(), 128, device), "asking for its name")?;
            check(cu::cuDevicePrimaryCtxRetain(&mut context, device), "opening a context")?;
            check(cu::cuCtxSetCurrent(context), "entering the context")?;
        }
        let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        Ok(Self { name, memory: RefCell::default(), kernels: RefCell::default() })
    }

    /// Memory with any content.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<u64, String> {
        let mut at = 0;
        // SAFETY: the pointer is valid for one address.
        check(unsafe { cu::cuMemAlloc_v2(&mut at, bytes) }, "allocating")?;
        self.memory.borrow_mut().push(at);
        Ok(at)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let (from, stream) = (bytes.as_ptr().cast(), ptr::null_mut());
        // SAFETY: the caller's range of device memory, and all of `bytes`; the stream is waited for.
        let result = unsafe { cu::cuMemcpyHtoDAsync_v2(at, from, bytes.len(), stream) };
        check(result, "copying to the device")?;
        self.wait()
    }

    /// Reads once all launches have ended.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), String> {
        let (to, stream) = (bytes.as_mut_ptr().cast(), ptr::null_mut());
        // SAFETY: the caller's range of device memory, and all of `bytes`; the stream is waited for.
        let result = unsafe { cu::cuMemcpyDtoHAsync_v2(to, at, bytes.len(), stream) };
        check(result, "copying from the device")?;
        self.wait()
    }

    /// Copies on the device.
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), String> {
        // SAFETY: the caller's ranges of device memory.
        let result = unsafe { cu::cuMemcpyDtoDAsync_v2(to, from, bytes, ptr::null_mut()) };
        check(result, "copying on the device")
    }

    /// Fills with zeros.
    pub(crate) fn clear(&self, at: u64, bytes: usize) -> Result<(), String> {
        // SAFETY: the caller's range of device memory.
        check(unsafe { cu::cuMemsetD8Async(at, 0, bytes, ptr::null_mut()) }, "clearing")
    }

    /// Waits for all that was asked for.
    pub(crate) fn wait(&self) -> Result<(), String> {
        // SAFETY: the default stream of the current context.
        check(unsafe { cu::cuStreamSynchronize(ptr::null_mut()) }, "computing")
    }

    /// Starts a kernel.
    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), String> {
        let function = self.function(launch.kernel)?;
        let bytes = launch.args.bytes();
        let mut params: Vec<*mut c_void> =
            launch.args.offsets().map(|at| bytes[at..].as_ptr().cast_mut().cast()).collect();
        let ([x, y, z], nothing) = (launch.grid, ptr::null_mut());
        let (block, shared, params) = (launch.block, launch.shared, params.as_mut_ptr());
        // SAFETY: the parameters have the types of the kernel; the driver reads them before it returns.
        let result = unsafe {
            let stream = ptr::null_mut();
            cu::cuLaunchKernel(function, x, y, z, block, 1, 1, shared, stream, params, nothing)
        };
        check(result, launch.kernel)
    }

    fn function(&self, kernel: &'static str) -> Result<cu::CUfunction, String> {
        if let Some((_, function)) = self.kernels.borrow().get(kernel) {
            return Ok(*function);
        }
        let text = cuda::ptx(kernel).ok_or_else(|| format!("no kernel {kernel}"))?;
        let text = CString::new(text).map_err(|e| e.to_string())?;
        let name = CString::new(kernel).map_err(|e| e.to_string())?;
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: both texts end with a zero byte; the pointers are valid for one handle each.
        unsafe {
            check(cu::cuModuleLoadData(&mut module, text.as_ptr().cast()), kernel)?;
            check(cu::cuModuleGetFunction(&mut function, module, name.as_ptr()), kernel)?;
        }
        if cuda::max_shared(kernel) > FREE_SHARED {
            let most =
                cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = cuda::max_shared(kernel) as c_int;
            // SAFETY: the function was just found.
            check(unsafe { cu::cuFuncSetAttribute(function, most, bytes) }, kernel)?;
        }
        self.kernels.borrow_mut().insert(kernel, (module, function));
        Ok(function)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Errors cannot be told any more.
        // SAFETY: nobody uses these any more.
        unsafe {
            let _ = cu::cuStreamSynchronize(ptr::null_mut());
            for at in self.memory.get_mut() {
                let _ = cu::cuMemFree_v2(*at);
            }
            for (module, _) in self.kernels.get_mut().values() {
                let _ = cu::cuModuleUnload(*module);
            }
        }
    }
}

fn check(result: CUresult, doing: &str) -> Result<(), String> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(format!("the NVIDIA driver reports {result:?} ({doing})"))
}
