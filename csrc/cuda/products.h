// Internal C++ forms of the CUDA ops, so that the fused ops call them without the dispatcher. The
// caller guarantees dtypes, sizes and devices as stated, and has the device guard set.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

namespace daq_mm::cuda {

// x is about (q - zero point) * step; q uint8 channels-last, qparams float32 (2,).
struct QuantizedX {
  at::Tensor q;
  at::Tensor qparams;
};

// q int8 contiguous, w's size; step float32 (1,), or (Ci,) for folded weights.
struct QuantizedW {
  at::Tensor q;
  at::Tensor step;
};

// ---- ops_quantize.cpp ----

QuantizedX quantize_x_cuda(const at::Tensor& x, bool allow_unsigned);
QuantizedW quantize_w_cuda(const at::Tensor& w);
// g_threshold float32 (Co,) contiguous.
QuantizedW quantize_w_folded_cuda(const at::Tensor& w, const at::Tensor& g_threshold,
                                  int64_t groups);
// int8 channels-last, g's size; threshold float32 (Co,) or (1,), contiguous.
at::Tensor quantize_g_cuda(const at::Tensor& g, const at::Tensor& threshold,
                           const std::optional<at::Tensor>& seed);

// ---- ops_thresholds.cpp ----

// float32 (C,): sum of each channel of g.
at::Tensor channel_sums_cuda(const at::Tensor& g);

}  // namespace daq_mm::cuda
