//! The driver's interface to conditional graph nodes.
//!
//! cudarc declares the node and its handle only if the build machine has CUDA 12.3 or later. So both are declared here,
//! with the layouts of `cuda.h`, and looked up in the driver that runs.

use std::ffi::c_void;

use cudarc::driver::sys;

/// The functions that add conditional nodes, from a driver that is never closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    pub(super) create_handle: CreateHandle,
    pub(super) add_node: AddNode,
}

/// `cuGraphConditionalHandleCreate`: handle, graph, context, value at the start of a replay, flags.
pub(super) type CreateHandle = unsafe extern "C" fn(*mut u64, sys::CUgraph, sys::CUcontext, u32, u32) -> sys::CUresult;

/// `cuGraphAddNode`, without `_v2`: node, graph, the nodes that it waits for and their number, its description.
pub(super) type AddNode = unsafe extern "C" fn(
    *mut sys::CUgraphNode,
    sys::CUgraph,
    *const sys::CUgraphNode,
    usize,
    *mut NodeParams,
) -> sys::CUresult;

/// `CUgraphNodeParams`.
#[repr(C)]
pub(super) struct NodeParams {
    pub kind: u32,
    pub reserved0: [u32; 3],
    pub node: Payload,
    pub reserved2: u64,
}

/// The union in it.
#[repr(C)]
pub(super) union Payload {
    /// Bytes that a node does not use must be zero.
    pub zeros: [u64; 29],
    pub kernel: KernelNode,
    pub condition: ConditionNode,
}

/// `CUDA_KERNEL_NODE_PARAMS_v3`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct KernelNode {
    pub function: sys::CUfunction,
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub shared_bytes: u32,
    pub params: *mut *mut c_void,
    pub extra: *mut *mut c_void,
    /// Read if `function` is null.
    pub kernel: *mut c_void,
    /// As above.
    pub context: sys::CUcontext,
}

/// `CUDA_CONDITIONAL_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ConditionNode {
    pub handle: u64,
    pub kind: u32,
    pub bodies: u32,
    /// Set by the driver when it adds the node: `bodies` graphs of its own.
    pub graphs: *mut sys::CUgraph,
    pub context: sys::CUcontext,
}

const _: () = assert!(size_of::<KernelNode>() == 72 && size_of::<ConditionNode>() == 32);
const _: () = assert!(size_of::<NodeParams>() == 256 && std::mem::offset_of!(NodeParams, node) == 16);

/// `CU_GRAPH_NODE_TYPE_KERNEL`.
pub(super) const KERNEL: u32 = 0;
/// `CU_GRAPH_NODE_TYPE_CONDITIONAL`.
pub(super) const CONDITIONAL: u32 = 13;
/// `CU_GRAPH_COND_TYPE_IF`.
pub(super) const IF: u32 = 0;
/// `CU_GRAPH_COND_ASSIGN_DEFAULT`: every replay starts with the handle's first value.
pub(super) const ASSIGN_DEFAULT: u32 = 1;
/// The first value: a node whose condition nothing sets runs its body, whose kernels read their gate themselves.
pub(super) const OPEN: u32 = 1;

impl Api {
    /// The first CUDA with both, counted as `Driver::version`.
    pub const SINCE: i32 = 12_040;

    /// The driver's functions, if it has both.
    ///
    /// # Safety
    /// `library` is a CUDA driver that is never closed.
    pub unsafe fn find(library: &libloading::Library) -> Option<Self> {
        // SAFETY: by the contract it is a driver; the symbols have these types in every driver that has them.
        unsafe {
            let create_handle = *library.get::<CreateHandle>(b"cuGraphConditionalHandleCreate").ok()?;
            let add_node = *library.get::<AddNode>(b"cuGraphAddNode").ok()?;
            Some(Self { create_handle, add_node })
        }
    }
}
