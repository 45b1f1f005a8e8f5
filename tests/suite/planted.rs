//! Bugs that a sanitizer must find, so that `ci/gpu.sh` knows that it works. They run only if `RESIDUUM_PLANT` names
//! one: `memcheck` or `racecheck`.

use residuum::cudarc::driver::{CudaContext, LaunchConfig};
use residuum::cudarc::nvrtc::Ptx;

/// The last thread stores past the end of an allocation of 128 words.
const OUT_OF_BOUNDS: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry planted(.param .u64 y) {
  .reg .u32 %r<2>;
  .reg .u64 %a<3>;
  ld.param.u64 %a0, [y];
  mov.u32 %r0, %tid.x;
  add.u32 %r0, %r0, 1;
  mul.wide.u32 %a1, %r0, 4;
  add.u64 %a2, %a0, %a1;
  st.global.u32 [%a2], %r0;
  ret;
}";

/// Every thread stores to shared memory and loads another warp's store, with no barrier between.
const RACE: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry planted(.param .u64 y) {
  .reg .u32 %r<6>;
  .reg .u64 %a<3>;
  .shared .align 4 .b8 tile[512];
  ld.param.u64 %a0, [y];
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, tile;
  shl.b32 %r2, %r0, 2;
  add.u32 %r3, %r1, %r2;
  st.shared.u32 [%r3], %r0;
  xor.b32 %r2, %r2, 256;
  add.u32 %r3, %r1, %r2;
  ld.shared.u32 %r4, [%r3];
  mul.wide.u32 %a1, %r0, 4;
  add.u64 %a2, %a0, %a1;
  st.global.u32 [%a2], %r4;
  ret;
}";

#[test]
fn a_planted_bug() {
    let ptx = match std::env::var("RESIDUUM_PLANT").as_deref() {
        Ok("memcheck") => OUT_OF_BOUNDS,
        Ok("racecheck") => RACE,
        _ => return,
    };
    let context = CudaContext::new(0).expect("a GPU");
    let stream = context.default_stream();
    let function =
        context.load_module(Ptx::from_src(ptx)).expect("sound PTX").load_function("planted").expect("its entry");
    let mut y = stream.alloc_zeros::<u32>(128).expect("memory");
    let grid = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(&function);
    residuum::cudarc::driver::PushKernelArg::arg(&mut launch, &mut y);
    // SAFETY: it is not; the sanitizer must say so.
    unsafe { launch.launch(grid) }.expect("a launch");
    // Under memcheck the store is an error; elsewhere it may pass.
    println!("planted: {:?}", stream.synchronize());
}
