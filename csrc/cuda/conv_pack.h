// Weights as the tile kernels of forward and grad-input read them.
#pragma once

#include "cuda/conv_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

// q_w (Co, Ci / groups, *kernel) -> packed [phase][group][lane][row_bytes], byte k of a row for tap
// k / depth of the phase and source channel k % depth, zeros behind; lane is the result channel.
// sums, if not null: of each row (one phase). pads: 64 bytes, the first 16 the zero point
// qparams[1] (zeros if qparams is null), the others zeros.
void pack_weights(Global<const int8_t> q_w, Global<const float> qparams, const ConvSizes& sizes,
                  bool backward, int64_t row_bytes, Global<uint8_t> packed, Global<int32_t> sums,
                  Global<uint8_t> pads, Stream stream);

// The pads alone.
void write_pads(Global<const float> qparams, Global<uint8_t> pads, Stream stream);

}  // namespace daq_mm::cuda
