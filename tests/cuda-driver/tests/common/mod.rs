//! A device with the committed kernels, for tests: the emulated one, or with `TRAMONTANE_TEST_GPU=1` the GPU of this machine.

pub(crate) mod real;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Mutex;

use emulated_cuda::{Device, Kernel, LaunchError, Shape, load_module};
use half::{bf16, f16};
use tramontane_kernels::cuda::{self, Element, Launch};

/// The kernels that ran to their end.
static RAN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Whether a kernel ran to its end in this process.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn has_run(kernel: &str) -> bool {
    RAN.lock().expect("no panic while it is held").contains(kernel)
}

/// A change of a kernel's text: what to find and what to put in its place.
pub(crate) type Edit<'a> = &'a dyn Fn(&str, String) -> String;

/// What runs the kernels.
enum Machine {
    Emulated(Device),
    Real(real::Device),
}

/// A device that loads kernels when they are first launched.
pub(crate) struct Gpu<'a> {
    machine: Machine,
    kernels: RefCell<HashMap<&'static str, Rc<Kernel>>>,
    edit: Edit<'a>,
}

impl Gpu<'static> {
    /// The device that tests of the shipped kernels run on.
    pub(crate) fn new() -> Self {
        let mut gpu = Gpu::edited(&|_, ptx| ptx);
        if real::is_wanted() {
            let device = real::Device::open();
            let device = device.unwrap_or_else(|e| panic!("TRAMONTANE_TEST_GPU is set, but {e}"));
            gpu.machine = Machine::Real(device);
        }
        gpu
    }
}

impl<'a> Gpu<'a> {
    /// An emulated device whose kernels are changed by `edit` (name, PTX) before they are loaded.
    pub(crate) fn edited(edit: Edit<'a>) -> Self {
        Gpu { machine: Machine::Emulated(Device::new(1 << 30)), kernels: RefCell::default(), edit }
    }

    fn kernel(&self, name: &'static str) -> Rc<Kernel> {
        let mut kernels = self.kernels.borrow_mut();
        let load = || {
            let text = cuda::ptx(name).unwrap_or_else(|| panic!("no kernel {name}"));
            let mut module =
                load_module(&(self.edit)(name, text)).unwrap_or_else(|e| panic!("{name}: {e}"));
            Rc::new(module.remove(0))
        };
        kernels.entry(name).or_insert_with(load).clone()
    }

    /// Uninitialised memory.
    pub(crate) fn empty(&self, bytes: usize) -> u64 {
        match &self.machine {
            Machine::Emulated(device) => device.alloc(bytes.max(1)).expect("memory"),
            Machine::Real(device) => device.alloc(bytes.max(1)).unwrap_or_else(|e| panic!("{e}")),
        }
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) -> u64 {
        let at = self.empty(bytes.len());
        match &self.machine {
            Machine::Emulated(device) => assert!(device.write(at, bytes)),
            Machine::Real(device) => device.write(at, bytes).unwrap_or_else(|e| panic!("{e}")),
        }
        at
    }

    pub(crate) fn floats(&self, values: &[f32]) -> u64 {
        self.bytes(&encode(Element::F32, values))
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn indices(&self, values: &[u32]) -> u64 {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn elements(&self, element: Element, values: &[f32]) -> u64 {
        self.bytes(&encode(element, values))
    }

    pub(crate) fn try_run(&self, launches: &[Launch]) -> Result<(), LaunchError> {
        for l in launches {
            let kernel = self.kernel(l.kernel);
            let offsets: Vec<usize> = kernel.params.iter().map(|p| p.offset).collect();
            assert!(l.args.offsets().eq(offsets), "{}: parameters do not match", l.kernel);
            let shape = Shape { grid: l.grid, block: [l.block, 1, 1], shared: l.shared };
            match &self.machine {
                Machine::Emulated(device) => device.launch(&kernel, shape, l.args.bytes())?,
                Machine::Real(device) => device.launch(l).map_err(LaunchError::Invalid)?,
            }
            RAN.lock().expect("no panic while it is held").insert(l.kernel);
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn run(&self, launches: &[Launch]) {
        if let Err(e) = self.try_run(launches) {
            panic!("{e}");
        }
    }

    /// Reads `n` f32 that must have been written.
    #[track_caller]
    pub(crate) fn read(&self, at: u64, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * n];
        match &self.machine {
            Machine::Emulated(device) => {
                assert!(device.initialised(at, 4 * n), "results that nobody wrote");
                assert!(device.read(at, &mut bytes));
            }
            Machine::Real(device) => device.read(at, &mut bytes).unwrap_or_else(|e| panic!("{e}")),
        }
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

#[allow(dead_code, reason = "not every test needs it")]
impl Gpu<'_> {
    /// Reads `n` u32 that must have been written.
    #[track_caller]
    pub(crate) fn numbers(&self, at: u64, n: usize) -> Vec<u32> {
        self.read(at, n).into_iter().map(f32::to_bits).collect()
    }
}

/// Values as they lie in memory.
pub(crate) fn encode(element: Element, values: &[f32]) -> Vec<u8> {
    match element {
        Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Element::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

/// Values after they were rounded to a type.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn rounded(element: Element, values: &[f32]) -> Vec<f32> {
    let round = |&v: &f32| match element {
        Element::F32 => v,
        Element::F16 => f16::from_f32(v).to_f32(),
        Element::Bf16 => bf16::from_f32(v).to_f32(),
    };
    values.iter().map(round).collect()
}

#[allow(dead_code, reason = "not every test needs it")]
pub(crate) const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];
