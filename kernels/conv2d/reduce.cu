// out[row][col] = epilogue(sum_split partial[split][row][col]), splits in ascending order: the second half of every
// convolution whose reduction is split, and of the bias gradient.
//
// Tensors   partial[splits][rows][cols] in f32; out in f32, f16 or bf16, `out_stride` elements from row to row; the
//           epilogue is fwd's, with scale[cols], shift[cols] and residual[rows][cols].
// Grid      x: blocks of 256 consecutive results. Threads: 256, one result each. Shared memory: none.
// Counted   (splits - 1) * rows * cols FLOPs; bytes: partial once, out once (twice if added to).
#include "conv2d/epilogue.cuh"

namespace conv2d {

constexpr int REDUCE_THREADS = 256;

template <typename T>
__device__ __forceinline__ void reduce(const ReduceParams& p) {
  const i64 all = p.rows * p.cols, first = i64(blockIdx.x) * REDUCE_THREADS, i = first + threadIdx.x;
  if (i >= all) return;
  // The 64-bit division is uniform over the block; the thread's own is 32-bit.
  const u32 col = u32(u64(first) % u64(p.cols)) + threadIdx.x;
  const i64 row = i64(u64(first) / u64(p.cols)) + col / u32(p.cols);

  float sum = p.partial[i];
  for (int s = 1; s < p.splits; ++s) sum += p.partial[i + s * all];
  const Output<T> output{static_cast<T*>(p.out), p.out_stride, p.scale, p.shift, static_cast<const T*>(p.residual),
                         p.residual_stride, (p.flags & RELU) != 0, (p.flags & ACCUMULATE) != 0, false};
  output.template put<1>(row, int(col % u32(p.cols)), &sum);
}

KERNEL(conv2d_reduce_f32, ReduceParams, REDUCE_THREADS, 4, (reduce<float>))
KERNEL(conv2d_reduce_f16, ReduceParams, REDUCE_THREADS, 4, (reduce<f16>))
KERNEL(conv2d_reduce_bf16, ReduceParams, REDUCE_THREADS, 4, (reduce<bf16>))

}  // namespace conv2d
