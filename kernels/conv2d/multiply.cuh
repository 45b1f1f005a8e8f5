// One stage of the reduction: multiplies operand tiles A (M x DEPTH) and B (DEPTH x N) in shared memory and adds to
// sums in registers. An operand is K-major (rows are m or n, as in fwd) or not (rows are k, as in bwd_w).
#pragma once

#include "conv2d/tile.cuh"

namespace conv2d {

// An operand of `EXTENT` rows or columns in shared memory.
template <typename T, class Tile, int EXTENT, bool K_MAJOR_>
struct Operand {
  static constexpr bool K_MAJOR = K_MAJOR_;
  using Layout = Swizzled<K_MAJOR ? EXTENT : DEPTH<T, Tile>, K_MAJOR ? Tile::K_BYTES : EXTENT * int(sizeof(T))>;
};

template <typename T>
struct TensorCoreType;
template <>
struct TensorCoreType<f16> {
  using Type = ptx::F16;
};
template <>
struct TensorCoreType<bf16> {
  using Type = ptx::BF16;
};

// The row addresses that a lane gives ldmatrix.x4, for blocks of 16 rows or columns by 16 of k. Lane l gives the
// address of row l % 8 of the 8x8 matrix l / 8. The matrices have the order of a fragment's registers: in A by m, then
// k; in B by k, then n. Only the permuted offsets are in registers; the rest are constants.
template <class Op, int BLOCKS, int STEPS, bool IS_A>
struct Fragments {
  using Layout = typename Op::Layout;
  static constexpr int ROWS_16 = 16 * Layout::CHUNKS * 16;  // bytes of 16 rows
  int offset[Op::K_MAJOR ? STEPS : BLOCKS];

  __device__ __forceinline__ Fragments(int lane, int start) {
    const bool rows_first = Op::K_MAJOR == IS_A;  // the second matrix is eight rows further, else the next chunk
    const int row = rows_first ? lane % 16 : lane % 8 + lane / 16 * 8, chunk = rows_first ? lane / 16 : lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < (Op::K_MAJOR ? STEPS : BLOCKS); ++i)
      offset[i] = Op::K_MAJOR ? Layout::offset(start + row, 2 * i + chunk)
                              : Layout::offset(row, start / 8 + 2 * i + chunk);
  }

  __device__ __forceinline__ void load(u32 (&r)[4], const u8* tile, int block, int step) const {
    if (Op::K_MAJOR)
      ptx::ldmatrix_x4(r, tile + offset[Op::K_MAJOR ? step : 0] + block * ROWS_16);
    else
      ptx::ldmatrix_x4_trans(r, tile + offset[Op::K_MAJOR ? 0 : block] + step * ROWS_16);
  }
};

// f16 and bf16: mma.sync.m16n8k16. With PROMOTE, the sums move to a second set of registers every PROMOTE stages:
// tensor cores truncate, so the error of a sum grows with its length instead of the square root of its length.
template <typename T, class Tile, bool A_K_MAJOR, bool B_K_MAJOR, int PROMOTE>
struct Multiply {
  using A = Operand<T, Tile, Tile::M, A_K_MAJOR>;
  using B = Operand<T, Tile, Tile::N, B_K_MAJOR>;
  static constexpr int MI = Tile::WARP_M / 16, NJ = Tile::WARP_N / 8, STEPS = DEPTH<T, Tile> / 16;

  Fragments<A, MI, STEPS, true> a_lane{Tile::lane(), Tile::warp_m()};
  Fragments<B, NJ / 2, STEPS, false> b_lane{Tile::lane(), Tile::warp_n()};
  float sum[MI][NJ][4] = {};
  float total[PROMOTE ? MI : 1][PROMOTE ? NJ : 1][4] = {};

  __device__ __forceinline__ void stage(const u8* a_tile, const u8* b_tile) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      u32 a[MI][4], b[NJ][2];
#pragma unroll
      for (int i = 0; i < MI; ++i) a_lane.load(a[i], a_tile, i, step);
#pragma unroll
      for (int j = 0; j < NJ; j += 2) {
        u32 r[4];
        b_lane.load(r, b_tile, j / 2, step);
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
      ptx::mma_m16n8k16<typename TensorCoreType<T>::Type>(sum, a, b);
    }
  }

  // True if all sums are finite.
  __device__ __forceinline__ bool finite() const {
    float zero = 0.0f;  // or NaN
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) zero = fmaf(sum[i][j][e], 0.0f, zero);
    return zero == 0.0f;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }

  __device__ __forceinline__ void promote(int stages) {
    if (PROMOTE && stages % (PROMOTE ? PROMOTE : 1) == 0) move();
  }

  __device__ __forceinline__ void move() {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total[PROMOTE ? i : 0][PROMOTE ? j : 0][e] += sum[i][j][e];
          sum[i][j][e] = 0;
        }
  }

  // Writes the finished sums to the staged tile.
  __device__ __forceinline__ void put(float* staged) {
    if (PROMOTE) move();
    const int g = Tile::lane() / 4, t = Tile::lane() % 4;
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) {
        const float(&d)[4] = PROMOTE ? total[PROMOTE ? i : 0][PROMOTE ? j : 0] : sum[i][j];
        float* p = staged + (Tile::warp_m() + 16 * i + g) * Tile::STAGED_STRIDE + Tile::warp_n() + 8 * j + 2 * t;
        store(p, Vec<float, 2>{d[0], d[1]});
        store(p + 8 * Tile::STAGED_STRIDE, Vec<float, 2>{d[2], d[3]});
      }
  }
};

// f32: fused multiply-adds in the order of k. The lanes of a warp are 8 x 4; each has TM x TN sums.
template <class Tile, bool A_K_MAJOR, bool B_K_MAJOR, int PROMOTE>
struct Multiply<float, Tile, A_K_MAJOR, B_K_MAJOR, PROMOTE> {
  using A = Operand<float, Tile, Tile::M, A_K_MAJOR>;
  using B = Operand<float, Tile, Tile::N, B_K_MAJOR>;
  static constexpr int TM = Tile::WARP_M / 8, TN = Tile::WARP_N / 4;
  static_assert((A_K_MAJOR || TM % 4 == 0) && (B_K_MAJOR || TN % 4 == 0), "four columns are loaded at once");

  float sum[TM][TN] = {};

  // The i-th row or column of one of LANES lanes, in the warp's tile: rows or columns loaded together are adjacent.
  template <class Op, int LANES>
  __device__ static __forceinline__ int extent_index(int lane, int i) {
    return Op::K_MAJOR ? lane + LANES * i : (lane + LANES * (i / 4)) * 4 + i % 4;
  }

  // Loads chunk k, four elements of the reduction, of a lane's rows or columns.
  template <class Op, int LANES, int COUNT>
  __device__ static __forceinline__ void load_operand(float (&f)[COUNT][4], const u8* tile, int start, int lane,
                                                      int k) {
    if (Op::K_MAJOR) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const u8* p = tile + Op::Layout::offset(start + lane + LANES * i, k);
        const Vec<float, 4> v = load<float, 4>(reinterpret_cast<const float*>(p));
#pragma unroll
        for (int e = 0; e < 4; ++e) f[i][e] = v.v[e];
      }
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; i += 4)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const u8* p = tile + Op::Layout::offset(4 * k + e, start / 4 + lane + LANES * (i / 4));
          const Vec<float, 4> v = load<float, 4>(reinterpret_cast<const float*>(p));
#pragma unroll
          for (int j = 0; j < 4; ++j) f[i + j][e] = v.v[j];
        }
    }
  }

  __device__ __forceinline__ void stage(const u8* a_tile, const u8* b_tile) {
#pragma unroll
    for (int k = 0; k < Tile::K_BYTES / 16; ++k) {
      float a[TM][4], b[TN][4];
      load_operand<A, 8>(a, a_tile, Tile::warp_m(), Tile::lane() / 4, k);
      load_operand<B, 4>(b, b_tile, Tile::warp_n(), Tile::lane() % 4, k);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int j = 0; j < TN; ++j) sum[i][j] = fmaf(a[i][e], b[j][e], sum[i][j]);
    }
  }

  // True if all sums are finite.
  __device__ __forceinline__ bool finite() const {
    float zero = 0.0f;  // or NaN
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) zero = fmaf(sum[i][j], 0.0f, zero);
    return zero == 0.0f;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) sum[i][j] = 0;
  }

  __device__ __forceinline__ void promote(int) {}

  __device__ __forceinline__ void put(float* staged) {
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const int m = Tile::warp_m() + extent_index<A, 8>(Tile::lane() / 4, i);
        const int n = Tile::warp_n() + extent_index<B, 4>(Tile::lane() % 4, j);
        staged[m * Tile::STAGED_STRIDE + n] = sum[i][j];
      }
  }
};

}  // namespace conv2d
