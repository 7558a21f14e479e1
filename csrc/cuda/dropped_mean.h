// Sums of 8-bit operands, for what quantization takes from a gradient on average: byte_sums and
// window_sums (daq_mm/ops/dropped_mean.py). Plain pointers into device memory.
#pragma once

#include <cstdint>

#include "cuda/conv_sizes.h"
#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// ---- byte_sums.cu ----

// sums int32 (channels) of q (rows, channels), int8 or uint8; rows <= kMostSumRows
// (checks.h).
void byte_sums(const int8_t* q, int64_t rows, int64_t channels, int32_t* sums, Stream stream);
void byte_sums(const uint8_t* q, int64_t rows, int64_t channels, int32_t* sums, Stream stream);

// ---- window_sums.cu ----

// sums float64 (ci, taps); q_x uint8 channels-last, x_qparams float (2) = (step, zero point).
// `sizes.co` and `groups` don't matter; the convolution has results, q_x values.
int64_t window_sums_workspace(const ConvSizes& sizes);
void window_sums(const ConvSizes& sizes, const uint8_t* q_x, const float* x_qparams,
                 void* workspace, double* sums, Stream stream);

}  // namespace daq_mm::cuda
