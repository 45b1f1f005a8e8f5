// The state of the loss scale, six f32; src/control/loss_scale/mod.rs uses the same indices.
#pragma once

namespace control {

// Indices into the state.
enum State {
  SCALE,  // the factor on the next run's gradients
  GOOD,   // good steps in a row since the scale last changed
  FRESH,  // 1 until a step has been taken; the first ignores the velocities
  USED,   // the factor on this run's gradients
  SKIP,   // 1 if this run's step is skipped
  FIRST,  // 1 if this run's step is the first
};

}  // namespace control
