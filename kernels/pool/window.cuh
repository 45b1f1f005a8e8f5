// Which pixels a pooling window covers, and which windows cover a pixel; as in src/ops/pool/mod.rs.
#pragma once

#include "common/strips.cuh"

namespace pool {

// The windows of an image; the same struct is in src/ops/pool/launch/params.rs.
struct Windows {
  u32 h, w, p, q;  // pixels of the input, windows
  u32 kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
  u32 adaptive;       // 1: windows are spread over the image; kernel, stride and padding are unused
  u32 count_padding;  // 1: the divisor of an average counts padded pixels
};
static_assert(sizeof(Windows) == 48, "as in src/ops/pool/launch/params.rs");

// The windows along one axis.
struct Axis {
  i64 size, count, kernel, stride, padding;
  bool adaptive, count_padding;
};

struct Range {
  int begin, end;
};

__device__ __forceinline__ Axis vertical(const Windows& w) {
  return Axis{w.h, w.p, w.kernel_h, w.stride_h, w.padding_h, w.adaptive != 0, w.count_padding != 0};
}

__device__ __forceinline__ Axis horizontal(const Windows& w) {
  return Axis{w.w, w.q, w.kernel_w, w.stride_w, w.padding_w, w.adaptive != 0, w.count_padding != 0};
}

__device__ __forceinline__ int clipped(i64 v, i64 size) { return int(v < 0 ? 0 : v > size ? size : v); }

// The pixels of window i that lie inside the image.
__device__ __forceinline__ Range pixels_of(const Axis& a, int i) {
  if (a.adaptive) return Range{int(i * a.size / a.count), int(((i + 1) * a.size + a.count - 1) / a.count)};
  const i64 begin = i * a.stride - a.padding;
  return Range{clipped(begin, a.size), clipped(begin + a.kernel, a.size)};
}

// The windows that cover pixel h.
__device__ __forceinline__ Range windows_of(const Axis& a, int h) {
  if (a.adaptive) return Range{int(h * a.count / a.size), int(((h + 1) * a.count + a.size - 1) / a.size)};
  const i64 at = h + a.padding;
  const i64 first = at < a.kernel ? 0 : (at - a.kernel) / a.stride + 1;
  return Range{clipped(first, a.count), clipped(at / a.stride + 1, a.count)};
}

// The extent of window i as a factor of an average's divisor.
__device__ __forceinline__ int extent_of(const Axis& a, int i) {
  const Range inside = pixels_of(a, i);
  if (a.adaptive || !a.count_padding) return inside.end - inside.begin;
  const i64 begin = i * a.stride, padded = a.size + 2 * a.padding;
  return int((begin + a.kernel < padded ? begin + a.kernel : padded) - begin);
}

}  // namespace pool
