// An activation as its readers compute it: scaled, shifted, optionally rectified, rounded to the storage type.
#pragma once

#include "common/dtype.cuh"

namespace norms {  // CUDA has a function `norm`

template <typename T>
__device__ __forceinline__ float activated(float x, float scale, float shift, u32 relu) {
  const float z = fmaf(x, scale, shift);
  return to_float(from_float<T>(relu ? rectified(z) : z));
}

}  // namespace norms
