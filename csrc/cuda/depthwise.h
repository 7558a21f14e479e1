// Direct kernels of depthwise convolutions: one channel a group, nothing for tensor cores to do.
#pragma once

#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"

namespace daq_mm::cuda {

// Forward and grad-input.
struct DepthwiseArguments {
  ConvSizes sizes;
  bool backward = false;
  Global<const uint8_t> source;   // uint8 activations; int8 gradients if backward
  Global<const int8_t> q_w;       // (C, 1, *kernel)
  Global<const float> qparams;    // step and zero point of activations; null if backward
  Global<const float> step;
  bool step_by_channel = false;
  Global<const float> bias;       // or null
  Results results;
};
void depthwise_rows(const DepthwiseArguments& arguments, Stream stream);

// Grad-weight: partial sums [split][channel][tap] of (q_x - zero point) * q_g over `split_runs`
// runs of positions each (depthwise_sizes.h). q_g: the bytes of int8.
void depthwise_grad_weight(Global<const uint8_t> q_x, Global<const float> qparams,
                           Global<const uint8_t> q_g, const ConvSizes& sizes, int64_t splits,
                           int64_t split_runs, Global<int32_t> partial, Stream stream);

}  // namespace daq_mm::cuda
