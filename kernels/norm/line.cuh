// A batch norm as one multiply-add.
#pragma once

#include "common/kernel.cuh"

namespace norms {  // CUDA has a function `norm`

struct Line {
  float scale, shift;
};

constexpr float STEPS = 32.0f;             // scales tried on either side, at most
constexpr float DEVIATIONS = 64.0f;        // one step for every 64 deviations between 0 and the mean
constexpr float PLACE = 1.0f / (1 << 23);  // one to two units in the last place of a number, relative to it

// y = x scale + shift with y = beta at the mean. The shift is rounded to the last place of mean * scale, and this error
// is in y at every x: if the mean is many deviations from 0, it far exceeds the rounding of y. Such a channel tries
// scales a few places away and takes the one whose line passes nearest to beta at the mean. All steps together move y,
// one deviation from the mean, by less than 1/16 of that error's bound.
__device__ __forceinline__ Line line_through(float mean, float deviation, float beta, float scale) {
  Line best = {scale, fmaf(-mean, scale, beta)};
  float nearest = fabsf(fmaf(mean, scale, best.shift) - beta);
  const float most = fabsf(mean) / (DEVIATIONS * deviation), steps = most < STEPS ? most : STEPS;
  for (float i = 1.0f; i <= steps && nearest > 0.0f; i += 1.0f) {
#pragma unroll
    for (int side = -1; side <= 1; side += 2) {
      const float s = fmaf(side * i * PLACE, scale, scale), shift = fmaf(-mean, s, beta);
      const float off = fabsf(fmaf(mean, s, shift) - beta);
      if (off < nearest) nearest = off, best = Line{s, shift};
    }
  }
  return best;
}

}  // namespace norms
