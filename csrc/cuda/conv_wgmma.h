// Forward and grad-input on compute capability 9.0: what plans and launches must know of it.
#pragma once

#include "cuda/conv_kernels.h"
#include "cuda/primitives/tensor_map.h"

namespace daq_mm::cuda {

// Phases of the stride that a launch has room for.
constexpr int kMostWgmmaPhases = 8;

// Bytes that a stage takes of a row: the channels of a tap are padded to a multiple of it.
inline int wgmma_span(int64_t depth) {
  const int64_t wide = ceil_div(depth, int64_t{128}) * 128;
  const int64_t narrow = ceil_div(depth, int64_t{64}) * 64;
  return wide <= narrow + narrow / 8 ? 128 : 64;
}

// Where taps lie along an axis, as the copy engine wants it: those of position 0 from the lowest
// shift on, each at an offset that is not negative.
DAQ_BOTH inline int lowest_shift(const AxisMap& axis) {
  const int reach = (axis.taps - 1) * axis.shift_step;
  return axis.shift + (axis.taps > 0 && reach < 0 ? reach : 0);
}
DAQ_BOTH inline int tap_offset(const AxisMap& axis, int tap) {
  return axis.shift_step < 0 ? (axis.taps - 1 - tap) * -axis.shift_step : tap * axis.shift_step;
}

// 2 for a 2D convolution, or one that is like it.
int walk_axes(const ConvSizes& sizes);

// The walk over the source positions that a phase's results meet first. `data` may be null.
WalkMapping walk_of(const ConvSizes& sizes, bool backward, int64_t phase, int span,
                    const void* data);

// Whether some tap falls outside of the source.
bool has_padding(const ConvSizes& sizes, bool backward);

// Why wgmma cannot compute forward or grad-input; null if it can.
const char* wgmma_refusal(const ConvSizes& sizes, bool backward);

// Why wgmma cannot compute grad-weight; null if it can.
const char* grad_weight_wgmma_refusal(const ConvSizes& sizes);

// How much of the contraction would be padding: padded length over length.
double wgmma_padding(const ConvSizes& sizes, bool backward);

}  // namespace daq_mm::cuda
