// The gradient through a ReLU and what batch norms need of it, where the producer of dz cannot do it.
//   v = dz (+ g),  0 where the ReLU was closed;  g = v, or with `scaled` scale v (+ g)
//   for each band of rows and each channel: sum v, sum v (y - mean) for one or two batch norms
//
// Tensors   dz, y, g: m rows of C channels in T, any pixel stride, 16-byte aligned where strips.wide is set; bits: m
//           rows of ceil(C / 8) bytes, any stride; the rest f32, dense. g may be dz.
// Method    with a gate that is closed the first batch norm's y and mean are not read, and its sum is 0.
// Grid      x: strips.blocks_per_row * bands.
// Threads   256. Shared memory: 256 V floats for each sum, V = 16 / sizeof(T).
// Counted   up to 8 FLOPs an element; dz, y (twice with two norms) and g once each, sizeof(T) bytes; g twice where it
//           is added to; a bit with *_signs.
// Entries   *_affine one batch norm; its ReLU was closed where y scale + shift, rounded to T, is 0 or less. *_signs one
//           batch norm at the end of a block; the ReLU was closed where the bit of the pixel's channel is not set.
//           *_signs_two two of them.
#include "norm/gradient.cuh"

namespace norms {  // CUDA has a function `norm`

template <typename T>
struct Stored {
  const T* dz;
  i64 stride;

  template <int V>
  __device__ __forceinline__ void load(float (&v)[V], i64 row, u32 channel, int n, u32 wide) const {
    load_strip<T, V>(v, dz + row * stride + channel, n, wide);
  }
};

template <typename T>
using OfStored = Gradient<T, Stored<T>>;
static_assert(sizeof(OfStored<float>) == 192, "as in src/ops/norm/launch.rs");

KERNEL(norm_gradient_f32_affine, OfStored<float>, STRIP_THREADS, 2, (gradient<float, false, 1>))
KERNEL(norm_gradient_f16_affine, OfStored<f16>, STRIP_THREADS, 2, (gradient<f16, false, 1>))
KERNEL(norm_gradient_bf16_affine, OfStored<bf16>, STRIP_THREADS, 2, (gradient<bf16, false, 1>))
KERNEL(norm_gradient_f32_signs, OfStored<float>, STRIP_THREADS, 2, (gradient<float, true, 1>))
KERNEL(norm_gradient_f16_signs, OfStored<f16>, STRIP_THREADS, 2, (gradient<f16, true, 1>))
KERNEL(norm_gradient_bf16_signs, OfStored<bf16>, STRIP_THREADS, 2, (gradient<bf16, true, 1>))
KERNEL(norm_gradient_f32_signs_two, OfStored<float>, STRIP_THREADS, 2, (gradient<float, true, 2>))
KERNEL(norm_gradient_f16_signs_two, OfStored<f16>, STRIP_THREADS, 2, (gradient<f16, true, 2>))
KERNEL(norm_gradient_bf16_signs_two, OfStored<bf16>, STRIP_THREADS, 2, (gradient<bf16, true, 2>))

}  // namespace norms
