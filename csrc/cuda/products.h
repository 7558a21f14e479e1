// Internal C++ forms of the CUDA ops, so that the fused ops (conv_forward, conv_backward, ...) call
// them without the dispatcher. The caller guarantees dtypes, sizes, layouts and devices as stated,
// and holds a DeviceGuard. Nothing waits for the device, save a product that is tuned (tune.h).
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/ScalarType.h>

#include "conv_geometry.h"
#include "cuda/conv_kernels.h"

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

// ---- forward.cpp, grad_input.cpp, grad_weight.cpp ----

// Y = float(sum of (q_x - zero point) * q_w) * (x step * w step) + bias, in out_dtype (float32,
// bfloat16, float16; int32 for the bare sums), in `format`: channels-last of the rank, or contiguous
// (which costs a pass). q_x uint8 channels-last, x_qparams float32 (2,), q_w int8 contiguous, w_step
// float32 (1,), bias of a float dtype. statistics: float64 (4, Co) contiguous to be written, for
// float results: sum, sum of squares, minimum, maximum of y as stored; zeros if y is empty.
// choice: tile and splits, for tests; null: those of plan_table.h, of a measurement (tune.h), or of
// the heuristic.
at::Tensor forward_cuda(const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_w,
                        const at::Tensor& w_step, const std::optional<at::Tensor>& bias,
                        const ConvGeometry& geometry, at::ScalarType out_dtype,
                        at::MemoryFormat format, const std::optional<at::Tensor>& statistics = {},
                        const PlanChoice* choice = nullptr);

// dX = float(sum of q_g * q_w) * step, in out_dtype and `format` as above. q_g int8 channels-last,
// q_w int8 contiguous, step float32 (Ci,) or (1,) contiguous.
at::Tensor grad_input_cuda(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                           const ConvGeometry& geometry, at::ScalarType out_dtype,
                           at::MemoryFormat format, const PlanChoice* choice = nullptr);

// dW = float(sum of (q_x - zero point) * q_g) * (x_step * g_step of the row), in out_dtype and
// `format`: channels-last of the rank or contiguous. q_x uint8 channels-last, q_g int8
// channels-last, g_step float32 (Co,) contiguous.
at::Tensor grad_weight_cuda(const at::Tensor& q_x, const at::Tensor& x_qparams,
                            const at::Tensor& q_g, const at::Tensor& g_step,
                            const ConvGeometry& geometry, at::ScalarType out_dtype,
                            at::MemoryFormat format, const PlanChoice* choice = nullptr);

}  // namespace daq_mm::cuda
