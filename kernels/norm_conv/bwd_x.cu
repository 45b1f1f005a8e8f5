// dx[n,h,w,c] = sum_{r,s,k} dy[n,p,q,k] * w[k,r,s,c], as conv2d_bwd_x, of the corrected gradient
// dy = a[k] * g + b[k] * y + c[k]; then back through the ReLU before x and with the sums of its batch norm, as
// masked.cuh says: v = dx where the activation was above 0, else 0; of each tile and column sum v, sum v (y0 - mean0),
// sum v (y1 - mean1). Each part where it is set; added to dx where asked.
//
// Tensors   those of conv2d_bwd_x; g and y [N,P,Q,K], y0 and y1 [N,H,W,C] in f32, f16 or bf16; bits [N,H,W,ceil(C/8)];
//           a, b, c [K], scale, shift, mean0, mean1 [C] and sums [2 or 3][residues * row tiles][C] in f32.
// Method    conv2d_bwd_x's. A stage holds g, w and y; each thread turns the chunks that it has copied into dy. Blocks of
//           residues without a row or a tap take part in the sums.
// Grid      that of conv2d_bwd_x; sums and masks need splits = 1.
// Threads   those of the tile. Shared memory: three stages with a second operand A, or the finished tile; rows.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: g, y, w, y0, y1, bits, dx once each (dx twice where added to), 8 or 12 bytes
//           a row tile and column.
// Entries   *_scalar take any number of channels; the others need 16-byte accesses to g, y, w, a, b and c.
#include "conv2d/gather.cuh"
#include "norm_conv/masked.cuh"
#include "norm_conv/sources.cuh"

namespace norm_conv {

// The sums of a block that has no row.
template <class Tile>
__device__ __forceinline__ void no_sums(const DataGradientParams& p, i64 band, int col0, int columns) {
  const int column = int(threadIdx.x);
  if (p.sums && column < Tile::N && column < columns) store_sums(p, band, col0 + column, {0.0f, 0.0f, 0.0f});
}

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_x(const DataGradientParams& p) {
  const Block block(p.n_tiles, p.groups);
  const int across = residues(p.v), n0 = block.n_tile * Tile::N, col0 = block.group * p.out_c + n0;
  const Slice h = residue_slice(p.h, int(blockIdx.y) / across), v = residue_slice(p.v, int(blockIdx.y) % across);
  const i64 band = i64(blockIdx.y) * p.m_tiles + block.m_tile;
  if (i64(block.m_tile) * Tile::M >= gather_rows(p, h, v)) {  // this residue has fewer rows than the largest
    no_sums<Tile>(p, band, col0, p.out_c - n0);
    return;
  }
  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  const Corrected<T, Tile::SECOND> in(p.in, p.in_stride, p.y, p.y_stride, p.a, p.b, p.c, block.group * p.in_c);
  float* staged = gather_tile<T, Tile, VECTOR, WeightColumns<T, Tile, VECTOR>, false>(p, in, h, v, block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int mine = thread_column<Tile>(), columns = p.out_c - n0;
  MaskedOutput<T> output(p, col0 + mine, columns - mine);
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, col0, columns, output);
  if (!p.sums) return;
  merge_columns<Tile, Added<3>>(output.sums, staged, [&](int column, const float(&sums)[3]) {
    if (column < columns) store_sums(p, band, col0 + column, sums);
  });
}

KERNEL(norm_conv_bwd_x_f32_128x128, DataGradientParams, 256, 1, (bwd_x<float, Tile128x128EightWarps::Paired, true>))
KERNEL(norm_conv_bwd_x_f32_64x64, DataGradientParams, 128, 3, (bwd_x<float, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_x_f32_128x16, DataGradientParams, 128, 3, (bwd_x<float, Tile128x16::Paired, true>))
KERNEL(norm_conv_bwd_x_f32_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<float, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_x_f32_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<float, Tile128x16::Paired, false>))

KERNEL(norm_conv_bwd_x_f16_128x128, DataGradientParams, 128, 2, (bwd_x<f16, Tile128x128::Paired, true>))
KERNEL(norm_conv_bwd_x_f16_128x64, DataGradientParams, 128, 3, (bwd_x<f16, Tile128x64::Paired, true>))
KERNEL(norm_conv_bwd_x_f16_64x64, DataGradientParams, 128, 4, (bwd_x<f16, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_x_f16_128x32, DataGradientParams, 128, 4, (bwd_x<f16, Tile128x32::Paired, true>))
KERNEL(norm_conv_bwd_x_f16_128x16, DataGradientParams, 128, 4, (bwd_x<f16, Tile128x16::Paired, true>))
KERNEL(norm_conv_bwd_x_f16_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<f16, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_x_f16_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<f16, Tile128x16::Paired, false>))

KERNEL(norm_conv_bwd_x_bf16_128x128, DataGradientParams, 128, 2, (bwd_x<bf16, Tile128x128::Paired, true>))
KERNEL(norm_conv_bwd_x_bf16_128x64, DataGradientParams, 128, 3, (bwd_x<bf16, Tile128x64::Paired, true>))
KERNEL(norm_conv_bwd_x_bf16_64x64, DataGradientParams, 128, 4, (bwd_x<bf16, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_x_bf16_128x32, DataGradientParams, 128, 4, (bwd_x<bf16, Tile128x32::Paired, true>))
KERNEL(norm_conv_bwd_x_bf16_128x16, DataGradientParams, 128, 4, (bwd_x<bf16, Tile128x16::Paired, true>))
KERNEL(norm_conv_bwd_x_bf16_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<bf16, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_x_bf16_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<bf16, Tile128x16::Paired, false>))

}  // namespace norm_conv
