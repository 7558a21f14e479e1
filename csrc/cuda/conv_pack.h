// Weights as the tile kernels of forward and grad-input read them.
#pragma once

#include "cuda/conv_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

// q_w (Co, Ci / groups, *kernel) -> packed [phase][group][lane][row_bytes]; lane is the result
// channel. Tap t of the phase and source channel c are byte t * tap_bytes + c of a row; what lies
// between and behind them is zero.
struct PackArguments {
  Global<const int8_t> q_w;
  ConvSizes sizes;
  bool backward = false;
  int tap_bytes = 0;              // at least the source channels of a group
  int64_t row_bytes = 0;          // a multiple of 4
  Global<uint8_t> packed;         // a multiple of 4
  Global<int32_t> sums;           // forward: of each row, or null
  Global<int32_t> tap_sums;       // forward: [tap][channel], or null
  Global<const float> qparams;    // of the pads
  Global<uint8_t> pads;           // as write_pads(), or null
};
void pack_weights(const PackArguments& arguments, Stream stream);

// 64 bytes, the first 16 the zero point qparams[1] (zeros if qparams is null), the others zeros.
void write_pads(Global<const float> qparams, Global<uint8_t> pads, Stream stream);

}  // namespace daq_mm::cuda
