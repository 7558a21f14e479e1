// Internal C++ forms of the CUDA ops, so that the fused ops (conv_forward, conv_backward, ...) call
// them without the dispatcher. The caller guarantees dtypes, sizes, layouts and devices as stated,
// and holds a DeviceGuard. Nothing waits for the device, save a product that is tuned (tune.h).
#pragma once

#include <optional>
#include <tuple>

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

// ---- forward.cpp, grad_input.cpp ----

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

// The same into a channels-last dx that is not empty; and, if `reduce` is not null, what
// norm_act_reduce does with it, in place (GradInputArguments).
void grad_input_into(const at::Tensor& dx, const at::Tensor& q_g, const at::Tensor& q_w,
                     const at::Tensor& step, const ConvGeometry& geometry,
                     const NormActReduce* reduce, const PlanChoice* choice = nullptr);

// The op's operands checked; their geometry.
ConvGeometry checked_grad_input(const at::Tensor& q_g, const at::Tensor& q_w,
                                const at::Tensor& step, at::IntArrayRef x_size,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, int64_t groups);

// ---- grad_input_reduce.cpp ----

// gz, channels-last in out_dtype, and the two sums, float64 (2, Ci): see daq_mm/ops/glue.py. The
// operands of grad-input as above; the others are checked. Holds no DeviceGuard of its own.
std::tuple<at::Tensor, at::Tensor> grad_input_reduce_cuda(
    const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
    const ConvGeometry& geometry, at::ScalarType out_dtype, const std::optional<at::Tensor>& g2,
    const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& y,
    const std::optional<at::Tensor>& grid, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& invstd, const PlanChoice* choice = nullptr);

// ---- grad_weight.cpp ----

// dW = float(sum of (q_x - zero point) * q_g) * (x_step * g_step of the row), in out_dtype and
// `format`: channels-last of the rank or contiguous. q_x uint8 channels-last, q_g int8
// channels-last, g_step float32 (Co,) contiguous.
at::Tensor grad_weight_cuda(const at::Tensor& q_x, const at::Tensor& x_qparams,
                            const at::Tensor& q_g, const at::Tensor& g_step,
                            const ConvGeometry& geometry, at::ScalarType out_dtype,
                            at::MemoryFormat format, const PlanChoice* choice = nullptr);

}  // namespace daq_mm::cuda
