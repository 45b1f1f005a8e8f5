// Softmax cross-entropy with label smoothing.
//   fwd   per image: loss = log sum e^(l - max) - on (l[label] - max) - everywhere sum (l - max); correct = 1 if the
//         first of the largest logits is the label's and no logit is NaN, else 0
//   mean  sums both over the images and divides the loss by N
//   bwd   dlogits = scale loss_scale (e^(l - max) / sum - target),  target = everywhere + (k = label) on
//
// Tensors   logits, dlogits[N,K] in T, labels[N] i32, the rest f32; dense, no alignment needed. loss_scale: a power of
//           two in device memory, which changes between runs of a captured step; a null pointer means 1.
// Method    the second pass over a row reads the cache; the mean's order of additions depends only on N. A label
//           outside 0..K makes the loss and the row of the gradient NaN.
// Grid      fwd and bwd x: N, one block per image; mean: one block.
// Threads   256. Shared memory: 256 * 2 floats.
// Counted   per logit: fwd 5 FLOPs and sizeof(T) bytes, bwd 6 FLOPs and 2 sizeof(T) bytes.
#include "common/tree.cuh"

namespace cross_entropy {

template <typename T>
struct CrossEntropyFwd {
  const T* logits;
  const int* labels;
  float* loss;     // [N]
  float* correct;  // [N]
  u32 classes;
  float on, everywhere;
  u32 unused;
};
static_assert(sizeof(CrossEntropyFwd<float>) == 48, "as in src/ops/cross_entropy/launch.rs");

struct CrossEntropyMean {
  const float* row_loss;     // [N]
  const float* row_correct;  // [N]
  float* loss;               // [1]
  float* correct;            // [1]
  u32 n, unused;
};
static_assert(sizeof(CrossEntropyMean) == 40, "as in src/ops/cross_entropy/launch.rs");

template <typename T>
struct CrossEntropyBwd {
  const T* logits;
  const int* labels;
  T* dlogits;
  const float* loss_scale;  // [1], may be null
  u32 classes;
  float on, everywhere, scale;  // scale = grad_scale / N
};
static_assert(sizeof(CrossEntropyBwd<float>) == 48, "as in src/ops/cross_entropy/launch.rs");

// The largest logit and the first class that has it; a NaN counts as the largest.
struct Largest {
  static constexpr int COUNT = 2;
  float f[COUNT];  // the logit, the bits of the class

  __device__ __forceinline__ float logit() const { return f[0]; }
  __device__ __forceinline__ u32 label() const { return ptx::float_to_bits(f[1]); }
  __device__ __forceinline__ void set(float logit, u32 label) {
    f[0] = logit;
    f[1] = ptx::bits_to_float(label);
  }
  __device__ __forceinline__ void take(const Largest& other) {
    const bool nan = other.logit() != other.logit();
    if (nan || other.logit() > logit() || (other.logit() == logit() && other.label() < label()))
      set(other.logit(), other.label());
  }
};

// Merges over the block and gives every thread the result.
template <typename State>
__device__ __forceinline__ void merge_block(State& state, float* shared) {
  merge_walkers(state, shared, 1, STRIP_THREADS);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < State::COUNT; ++i) state.f[i] = shared[i * STRIP_THREADS];
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ Largest find_largest(const T* logits, u32 classes, float* shared) {
  Largest largest;
  largest.set(-INFINITY, classes);
  for (u32 k = threadIdx.x; k < classes; k += STRIP_THREADS) {
    const float l = to_float(logits[k]);
    if (l > largest.logit() || l != l || largest.label() == classes) largest.set(l, k);
  }
  merge_block(largest, shared);
  return largest;
}

// The sums of e^(l - max) and of l - max.
template <typename T>
__device__ __forceinline__ Sums<2> sum_logits(const T* logits, u32 classes, float max, float* shared) {
  Sums<2> sums;
  sums.clear();
  for (u32 k = threadIdx.x; k < classes; k += STRIP_THREADS) {
    const float l = to_float(logits[k]) - max;
    sums.f[0] += expf(l);
    sums.f[1] += l;
  }
  merge_block(sums, shared);
  return sums;
}

template <typename T>
__device__ __forceinline__ void cross_entropy_fwd(const CrossEntropyFwd<T>& p) {
  SHARED(float, shared);
  const T* logits = p.logits + i64(blockIdx.x) * p.classes;
  const Largest largest = find_largest(logits, p.classes, shared);
  const Sums<2> sums = sum_logits(logits, p.classes, largest.logit(), shared);
  if (threadIdx.x != 0) return;
  const u32 label = u32(p.labels[blockIdx.x]);
  float loss = NAN;
  if (label < p.classes) {
    loss = fmaf(-p.on, to_float(logits[label]) - largest.logit(), logf(sums.f[0]));
    if (p.everywhere != 0.0f) loss = fmaf(-p.everywhere, sums.f[1], loss);
  }
  p.loss[blockIdx.x] = loss;
  const bool nan = largest.logit() != largest.logit();
  p.correct[blockIdx.x] = largest.label() == label && !nan ? 1.0f : 0.0f;
}

__device__ __forceinline__ void cross_entropy_mean(const CrossEntropyMean& p) {
  SHARED(float, shared);
  Sums<2> sums;
  sums.clear();
  for (u32 i = threadIdx.x; i < p.n; i += STRIP_THREADS) {
    sums.f[0] += p.row_loss[i];
    sums.f[1] += p.row_correct[i];
  }
  merge_walkers(sums, shared, 1, STRIP_THREADS);
  if (threadIdx.x != 0) return;
  *p.loss = sums.f[0] / float(p.n);
  *p.correct = sums.f[1];
}

template <typename T>
__device__ __forceinline__ void cross_entropy_bwd(const CrossEntropyBwd<T>& p) {
  SHARED(float, shared);
  const i64 row = i64(blockIdx.x) * p.classes;
  const float max = find_largest(p.logits + row, p.classes, shared).logit();
  const float sum = sum_logits(p.logits + row, p.classes, max, shared).f[0];
  const u32 label = u32(p.labels[blockIdx.x]);
  const float factor = label < p.classes ? 1.0f / sum : NAN;
  const float scale = p.loss_scale ? p.scale * *p.loss_scale : p.scale;
  for (u32 k = threadIdx.x; k < p.classes; k += STRIP_THREADS) {
    const float target = k == label ? p.everywhere + p.on : p.everywhere;
    const float error = fmaf(expf(to_float(p.logits[row + k]) - max), factor, -target);
    p.dlogits[row + k] = from_float<T>(scale * error);
  }
}

KERNEL(cross_entropy_fwd_f32, CrossEntropyFwd<float>, STRIP_THREADS, 4, cross_entropy_fwd<float>)
KERNEL(cross_entropy_fwd_f16, CrossEntropyFwd<f16>, STRIP_THREADS, 4, cross_entropy_fwd<f16>)
KERNEL(cross_entropy_fwd_bf16, CrossEntropyFwd<bf16>, STRIP_THREADS, 4, cross_entropy_fwd<bf16>)
KERNEL(cross_entropy_mean_f32, CrossEntropyMean, STRIP_THREADS, 4, cross_entropy_mean)
KERNEL(cross_entropy_bwd_f32, CrossEntropyBwd<float>, STRIP_THREADS, 4, cross_entropy_bwd<float>)
KERNEL(cross_entropy_bwd_f16, CrossEntropyBwd<f16>, STRIP_THREADS, 4, cross_entropy_bwd<f16>)
KERNEL(cross_entropy_bwd_bf16, CrossEntropyBwd<bf16>, STRIP_THREADS, 4, cross_entropy_bwd<bf16>)

}  // namespace cross_entropy
