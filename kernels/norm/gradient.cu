// The gradient epilogue as a pass of its own, for a dz whose producer cannot run it: the gradient through a ReLU, and
// the sums that the batch norms before it need.
//   v = dz (+ g), or 0 where the ReLU's output is 0;  g = v, or with `scaled` scale v (+ g)
//   for each band of rows and each channel: sum v, sum v (y - mean) for one or two batch norms
//
// Tensors   dz, y, g: m rows of C channels in T, any pixel stride, 16-byte aligned if strips.wide is set; bits: m rows
//           of ceil(C / 8) bytes, any stride; the rest dense f32. g may be dz.
// Method    behind a closed gate, y and mean of the first batch norm are not read, and its sum is 0.
// Grid      x: strips.blocks_per_row * bands.
// Threads   256. Shared memory: 256 V floats for each sum, V = 16 / sizeof(T).
// Counted   per element: up to 8 FLOPs; sizeof(T) bytes each for dz, g (twice if added to) and every norm's y; a bit
//           with *_signs.
// Entries   *_affine: one batch norm, masked where y scale + shift, rounded to T, is 0 or less. *_signs: one batch norm
//           at the end of a block, masked where its bit is 0. *_signs_two: two of them.
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
