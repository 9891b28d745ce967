//! How kernels enter the stream: each at once, or those of one token together, as a graph.
//!
//! Between [`Gpu::collect`]'s beginning and end launches only wait. They are let in, in their order, by the end and by any
//! other work for the stream: a copy, a read, a wait. A run of many becomes a graph, which the driver starts in one call;
//! the next token, whose run has the same kernels, changes the parameters that are others and starts it again.

use std::ffi::{CString, c_int, c_void};
use std::ptr;

use cudarc::driver::sys as cu;
use tramontane_kernels::cuda::{self as kernels, Launch};

use super::graph::{self, Graph};
use super::{Gpu, check, lock};
use crate::error::{Error, ErrorKind, Result};

/// Shorter runs are launched kernel by kernel: a graph would save less than it costs.
const SHORTEST_RUN: usize = 16;

/// Graphs that are kept: one for each run of a token, for a few sequences that take turns.
const MAX_GRAPHS: usize = 4;

/// Dynamic shared memory that a kernel may have without asking, bytes.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// A kernel as the driver knows it.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) module: cu::CUmodule,
    pub(super) function: cu::CUfunction,
}

/// Launches that wait, and the graphs of earlier runs.
pub(super) struct Queue {
    /// Whether launches wait.
    collecting: bool,
    waiting: Vec<Launch>,
    /// The one that was used last stands last.
    graphs: Vec<Graph>,
    /// Whether the driver makes graphs.
    has_graphs: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let has_graphs = graph::is_known();
        Self { collecting: false, waiting: Vec::new(), graphs: Vec::new(), has_graphs }
    }

    /// Lets all graphs go.
    pub(super) fn forget(&mut self) {
        self.graphs.clear();
    }
}

impl Gpu {
    /// Starts a kernel, or lets it wait. Its addresses must be those of live memory of this device, of the sizes that
    /// the function that made the launch asks for.
    pub(in super::super) fn launch(&self, launch: &Launch) -> Result<()> {
        let mut queue = lock(&self.queue);
        if queue.collecting {
            queue.waiting.push(launch.clone());
            return Ok(());
        }
        self.bind()?;
        self.start(launch)
    }

    /// Lets launches wait while `ask` asks for them; all have been let in when it returns.
    pub(in super::super) fn collect(&self, ask: impl FnOnce() -> Result<()>) -> Result<()> {
        lock(&self.queue).collecting = true;
        let asked = ask();
        lock(&self.queue).collecting = false;
        let started = self.flush();
        asked.and(started)
    }

    /// Makes the context current, and lets the waiting launches into the stream.
    pub(super) fn flush(&self) -> Result<()> {
        self.bind()?;
        let mut queue = lock(&self.queue);
        let mut run = std::mem::take(&mut queue.waiting);
        let started = self.start_all(&mut queue, &run);
        run.clear();
        queue.waiting = run;
        started
    }

    fn start_all(&self, queue: &mut Queue, run: &[Launch]) -> Result<()> {
        if queue.has_graphs && run.len() >= SHORTEST_RUN {
            if self.start_graph(&mut queue.graphs, run).is_ok() {
                return Ok(());
            }
            // A driver that refuses a graph has started nothing of it. Where the device itself is broken, the first
            // plain launch tells.
            queue.has_graphs = false;
            queue.forget();
        }
        run.iter().try_for_each(|launch| self.start(launch))
    }

    /// Starts `run` as a graph: the one that needs fewest changes, or a new one.
    fn start_graph(&self, graphs: &mut Vec<Graph>, run: &[Launch]) -> Result<()> {
        let changes = graphs.iter().enumerate().filter_map(|(i, g)| Some((g.changes(run)?, i)));
        let mut graph = match changes.min() {
            // Another sequence's: all its addresses differ.
            Some((changes, _)) if changes > run.len() / 2 && graphs.len() < MAX_GRAPHS => {
                Graph::new(self, run)?
            }
            Some((_, i)) => graphs.remove(i),
            None => Graph::new(self, run)?,
        };
        graph.update(self, run)?;
        graph.launch(self.stream)?;
        if graphs.len() == MAX_GRAPHS {
            graphs.remove(0);
        }
        graphs.push(graph);
        Ok(())
    }

    /// Starts a kernel in the current context.
    fn start(&self, launch: &Launch) -> Result<()> {
        let function = self.function(launch.kernel)?.function;
        let mut params = pointers(launch);
        let [x, y, z] = launch.grid;
        // SAFETY: the parameters have the types of the kernel (a test compares their layouts); the driver reads
        // them before it returns and does not write them.
        let result = unsafe {
            let (nothing, params) = (ptr::null_mut(), params.as_mut_ptr());
            cu::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.shared,
                self.stream,
                params,
                nothing,
            )
        };
        check(result, launch.kernel)
    }

    /// A kernel, compiled by the driver when it is first used.
    pub(super) fn function(&self, kernel: &'static str) -> Result<Function> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let text = kernels::ptx(kernel).and_then(|text| CString::new(text).ok());
        let (Some(text), Ok(name)) = (text, CString::new(kernel)) else {
            return Err(Error::new(ErrorKind::Device, format!("there is no kernel `{kernel}`")));
        };
        let mut f = Function { module: ptr::null_mut(), function: ptr::null_mut() };
        // SAFETY: both texts end with a zero byte; the pointers are valid for one handle each.
        unsafe {
            check(cu::cuModuleLoadData(&mut f.module, text.as_ptr().cast()), kernel)?;
            check(cu::cuModuleGetFunction(&mut f.function, f.module, name.as_ptr()), kernel)?;
            let shared =
                cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            if kernels::max_shared(kernel) > DEFAULT_SHARED {
                check(
                    cu::cuFuncSetAttribute(
                        f.function,
                        shared,
                        kernels::max_shared(kernel) as c_int,
                    ),
                    kernel,
                )?;
            }
        }
        functions.insert(kernel, f);
        Ok(f)
    }
}

/// Where the parameters of `launch` are, as the driver asks; it does not write them.
pub(super) fn pointers(launch: &Launch) -> Vec<*mut c_void> {
    let bytes = launch.args.bytes();
    launch.args.offsets().map(|at| bytes[at..].as_ptr().cast_mut().cast()).collect()
}
