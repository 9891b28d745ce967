//! The graphs of the emulated driver: what a device does with them, and the mistakes that it tells.

use std::ffi::{CString, c_void};
use std::ptr;

use emulated_cuda::api::graph::{
    KernelNodeParams, cuGraphAddKernelNode_v2, cuGraphCreate, cuGraphDestroy, cuGraphExecDestroy,
    cuGraphExecKernelNodeSetParams_v2, cuGraphInstantiateWithFlags, cuGraphLaunch,
};
use emulated_cuda::api::kernels::{cuModuleGetFunction, cuModuleLoadData};
use emulated_cuda::api::{
    CuResult, cuCtxSetCurrent, cuMemAlloc_v2, cuMemcpyDtoH_v2, cuMemcpyHtoD_v2,
};
use tramontane_kernels::cuda::{self, Launch};

type Handle = *mut c_void;

const SUCCESS: CuResult = 0;
const INVALID_VALUE: CuResult = 1;

fn function(kernel: &str) -> Handle {
    let text = CString::new(cuda::ptx(kernel).expect("a kernel")).expect("no zero byte");
    let name = CString::new(kernel).expect("no zero byte");
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the texts end with a zero byte, the pointers are valid for one handle each.
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, text.as_ptr().cast()), SUCCESS);
        assert_eq!(cuModuleGetFunction(&mut function, module, name.as_ptr()), SUCCESS);
    }
    function
}

fn floats(values: &[f32]) -> u64 {
    let mut at = 0;
    // SAFETY: the pointers are valid for one address and for the values.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut at, size_of_val(values)), SUCCESS);
        assert_eq!(cuMemcpyHtoD_v2(at, values.as_ptr().cast(), size_of_val(values)), SUCCESS);
    }
    at
}

fn read(at: u64) -> f32 {
    let mut value = 0f32;
    // SAFETY: the pointer is valid for one float.
    unsafe { assert_eq!(cuMemcpyDtoH_v2(ptr::from_mut(&mut value).cast(), at, 4), SUCCESS) };
    value
}

fn with_params<R>(
    function: Handle,
    launch: &Launch,
    call: impl FnOnce(*const KernelNodeParams) -> R,
) -> R {
    let bytes = launch.args.bytes().to_vec();
    let mut params: Vec<Handle> =
        launch.args.offsets().map(|at| bytes[at..].as_ptr().cast_mut().cast()).collect();
    let block = [launch.block, 1, 1];
    let params =
        KernelNodeParams::new(function, launch.grid, block, launch.shared, params.as_mut_ptr());
    call(&params)
}

fn add_node(graph: Handle, after: &[Handle], function: Handle, launch: &Launch) -> Handle {
    let mut node = ptr::null_mut();
    // SAFETY: all pointers are valid for what the driver reads and writes.
    let result = with_params(function, launch, |params| unsafe {
        cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), params)
    });
    assert_eq!(result, SUCCESS);
    node
}

fn change(prepared: Handle, node: Handle, function: Handle, launch: &Launch) -> CuResult {
    // SAFETY: the parameters are those of a node.
    with_params(function, launch, |params| unsafe {
        cuGraphExecKernelNodeSetParams_v2(prepared, node, params)
    })
}

fn new_graph() -> Handle {
    let mut graph = ptr::null_mut();
    // SAFETY: the pointer is valid for one handle.
    unsafe { assert_eq!(cuGraphCreate(&mut graph, 0), SUCCESS) };
    graph
}

fn prepare(graph: Handle) -> Handle {
    let mut prepared = ptr::null_mut();
    // SAFETY: the pointer is valid for one handle.
    unsafe { assert_eq!(cuGraphInstantiateWithFlags(&mut prepared, graph, 0), SUCCESS) };
    prepared
}

fn start(prepared: Handle) -> CuResult {
    // SAFETY: any value may be passed as a handle.
    unsafe { cuGraphLaunch(prepared, ptr::null_mut()) }
}

/// One test: the device is one for the whole process.
#[test]
fn graphs_run_in_the_order_of_their_dependencies_and_change_node_by_node() {
    // SAFETY: no other thread reads the environment; the device reads it at its first call.
    unsafe { std::env::set_var("TRAMONTANE_EMULATED_CUDA", "on") };
    // SAFETY: the number of the first context.
    unsafe { assert_eq!(cuCtxSetCurrent(ptr::without_provenance_mut(1)), SUCCESS) };
    let (add, scale) = (function("add"), function("scale_rows"));
    let (x, y, three) = (floats(&[1.0]), floats(&[10.0]), floats(&[3.0]));
    let (sum, product) = (cuda::add(y, x, 1), cuda::scale_rows(three, x, 1, 1));

    // (1 + 10) · 3, then (33 + 10) · 3: a prepared graph can be started again.
    let graph = new_graph();
    let first = add_node(graph, &[], add, &sum);
    let second = add_node(graph, &[first], scale, &product);
    let prepared = prepare(graph);
    assert_eq!((start(prepared), read(x)), (SUCCESS, 33.0));
    assert_eq!((start(prepared), read(x)), (SUCCESS, 129.0));

    // Without the dependency the later node runs first.
    let loose = new_graph();
    add_node(loose, &[], add, &sum);
    add_node(loose, &[], scale, &product);
    assert_eq!((start(prepare(loose)), read(x)), (SUCCESS, 397.0));

    // Another address for one node; another kernel, a node of another graph and no node are mistakes.
    let z = floats(&[3.0]);
    assert_eq!(change(prepared, first, add, &cuda::add(z, x, 1)), SUCCESS);
    assert_eq!((start(prepared), read(x)), (SUCCESS, 1200.0));
    assert_eq!(change(prepared, first, scale, &product), INVALID_VALUE);
    let other = new_graph();
    let foreign = add_node(other, &[], add, &sum);
    assert_eq!(change(prepared, foreign, add, &sum), INVALID_VALUE);
    assert_eq!(change(prepared, prepared, add, &sum), INVALID_VALUE);
    let mut node = ptr::null_mut();
    // SAFETY: all pointers are valid for what the driver reads and writes.
    let added = with_params(add, &sum, |params| unsafe {
        cuGraphAddKernelNode_v2(&mut node, graph, &foreign, 1, params)
    });
    assert_eq!(added, INVALID_VALUE);

    // What has ended is no handle any more; a prepared graph outlives its nodes, which cannot be changed then.
    // SAFETY: any value may be passed as a handle.
    unsafe {
        assert_eq!([cuGraphDestroy(graph), cuGraphDestroy(graph)], [SUCCESS, INVALID_VALUE]);
    }
    assert_eq!(change(prepared, second, scale, &product), INVALID_VALUE);
    assert_eq!((start(prepared), read(x)), (SUCCESS, 3609.0));
    // SAFETY: any value may be passed as a handle.
    let ended = unsafe { [cuGraphExecDestroy(prepared), cuGraphExecDestroy(prepared)] };
    assert_eq!((ended, start(prepared)), ([SUCCESS, INVALID_VALUE], INVALID_VALUE));
}
