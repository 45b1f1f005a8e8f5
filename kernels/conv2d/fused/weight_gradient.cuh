// One block of bwd_w: see bwd_w.cu.
#pragma once

#include "conv2d/weigh.cuh"
#include "conv2d/fused/sources.cuh"

namespace conv2d::fused {

template <typename T, class Tile>
__device__ __forceinline__ Corrected<T, Tile::SECOND> gradient_source(const WeightGradientParams& p, int group) {
  static_assert(Tile::A_TENSORS == 2, "a stage has room for the second tensor of operand A: take Tile::Paired");
  return {p.dy, p.dy_stride, p.y, p.y_stride, p.a, p.b, p.c, group * p.dy_c};
}

template <typename T>
__device__ __forceinline__ Activated<T> activation_source(const WeightGradientParams& p, int group) {
  return {p.x, p.x_stride, p.x_scale, p.x_shift, group * p.x_c, p.flags};
}

// Computes one tile of dw.
template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void weight_gradient(const WeightGradientParams& p, const Block& block) {
  weigh<T, Tile, VECTOR>(p, gradient_source<T, Tile>(p, block.group), activation_source<T>(p, block.group), block);
}

// As weight_gradient, for several narrow groups as one.
template <typename T, class Tile>
__device__ __forceinline__ void weight_gradient_packed(const WeightGradientParams& p, const Block& block) {
  weigh_diagonal<T, Tile>(p, gradient_source<T, Tile>(p, block.group), activation_source<T>(p, block.group),
                          p.dy_c / (p.x_c / p.w_c), block);
}

}  // namespace conv2d::fused
