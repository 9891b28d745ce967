//! A run of launches as a graph of the driver: a chain of nodes, each after the one before.

use std::ptr;

use cudarc::driver::sys as cu;
use tramontane_kernels::cuda::Launch;

use super::launch::pointers;
use super::{Gpu, check, has_function};
use crate::error::Result;

/// The functions of the driver that graphs need; those of drivers before CUDA 12 have others.
const FUNCTIONS: [&str; 7] = [
    "cuGraphAddKernelNode_v2",
    "cuGraphCreate",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
];

/// Whether the driver has all functions that graphs need.
pub(super) fn is_known() -> bool {
    FUNCTIONS.iter().all(|name| has_function(name))
}

/// Launches that the driver starts in one call, in their order.
pub(super) struct Graph {
    /// Must live as long as `exec`, whose nodes are known by the handles of this one's.
    graph: cu::CUgraph,
    exec: cu::CUgraphExec,
    nodes: Vec<cu::CUgraphNode>,
    /// What each node does now.
    run: Vec<Launch>,
}

// SAFETY: graphs may be used from any thread, by one at a time; they are only reached under the queue's lock.
unsafe impl Send for Graph {}

impl Graph {
    /// A graph of `run`; the context of `gpu` must be current.
    pub(super) fn new(gpu: &Gpu, run: &[Launch]) -> Result<Self> {
        let (graph, exec) = (ptr::null_mut(), ptr::null_mut());
        let mut new = Self { graph, exec, nodes: Vec::with_capacity(run.len()), run: run.to_vec() };
        // SAFETY: the pointer is valid for one handle.
        check(unsafe { cu::cuGraphCreate(&mut new.graph, 0) }, "making a graph")?;
        for launch in run {
            let before = new.nodes.last().map_or(ptr::null(), ptr::from_ref);
            let count = new.nodes.len().min(1);
            let mut node = ptr::null_mut();
            let added = with_params(gpu, launch, |params| {
                // SAFETY: the graph is alive, `before` points to `count` of its nodes; the driver copies the parameters,
                // which have the types of the kernel.
                unsafe { cu::cuGraphAddKernelNode_v2(&mut node, new.graph, before, count, params) }
            })?;
            check(added, launch.kernel)?;
            new.nodes.push(node);
        }
        // SAFETY: the pointer is valid for one handle, and the graph is alive.
        let made = unsafe { cu::cuGraphInstantiateWithFlags(&mut new.exec, new.graph, 0) };
        check(made, "preparing a graph")?;
        Ok(new)
    }

    /// How many nodes must change to do `run`; `None` where its kernels are others.
    pub(super) fn changes(&self, run: &[Launch]) -> Option<usize> {
        let same = |(a, b): (&Launch, &Launch)| a.kernel == b.kernel;
        let is_same = self.run.len() == run.len() && self.run.iter().zip(run).all(same);
        is_same.then(|| self.run.iter().zip(run).filter(|(a, b)| a != b).count())
    }

    /// Makes the nodes do `run`, which has the same kernels. A graph that is running goes on as it was.
    pub(super) fn update(&mut self, gpu: &Gpu, run: &[Launch]) -> Result<()> {
        for ((node, now), wanted) in self.nodes.iter().zip(&mut self.run).zip(run) {
            if now == wanted {
                continue;
            }
            let changed = with_params(gpu, wanted, |params| {
                // SAFETY: the graph and its node are alive; the driver copies the parameters, which have the types of
                // the kernel.
                unsafe { cu::cuGraphExecKernelNodeSetParams_v2(self.exec, *node, params) }
            })?;
            check(changed, wanted.kernel)?;
            now.clone_from(wanted);
        }
        Ok(())
    }

    /// Starts the graph.
    pub(super) fn launch(&self, stream: cu::CUstream) -> Result<()> {
        // SAFETY: the graph and the stream are alive.
        check(unsafe { cu::cuGraphLaunch(self.exec, stream) }, "starting a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Errors cannot be told any more. What is running goes on: the driver frees it afterwards.
        // SAFETY: the handles are alive or null, and nobody uses them any more.
        unsafe {
            if !self.exec.is_null() {
                let _ = cu::cuGraphExecDestroy(self.exec);
            }
            if !self.graph.is_null() {
                let _ = cu::cuGraphDestroy(self.graph);
            }
        }
    }
}

/// Calls `call` with the parameters of a node that does `launch`; they are gone when it returns.
fn with_params<R>(
    gpu: &Gpu,
    launch: &Launch,
    call: impl FnOnce(&cu::CUDA_KERNEL_NODE_PARAMS) -> R,
) -> Result<R> {
    let func = gpu.function(launch.kernel)?.function;
    let mut params = pointers(launch);
    let [x, y, z] = launch.grid;
    Ok(call(&cu::CUDA_KERNEL_NODE_PARAMS {
        func,
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        kernelParams: params.as_mut_ptr(),
        extra: ptr::null_mut(),
        kern: ptr::null_mut(),
        ctx: ptr::null_mut(),
    }))
}
