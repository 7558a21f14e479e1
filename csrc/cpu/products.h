// Internal C++ forms of the CPU ops, so that the fused ops (conv_forward, conv_backward) call them
// without the dispatcher. The registered ops check their arguments and then call these; here the
// caller guarantees dtypes, sizes and layouts as stated.
//
// 8-bit activations and gradients are dense channels-last (NHWC / NDHWC); weights are contiguous or
// channels-last.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/ScalarType.h>

#include "conv_geometry.h"

namespace daq_mm::cpu {

struct BlockEpilogue;  // gemm_driver.h

// x is about (q - zero_point) * step; q uint8 channels-last, x's size.
struct QuantizedX {
  at::Tensor q;
  float step;
  int32_t zero_point;
};

// q int8, w's size, in w's memory order (contiguous or channels-last); step float32 (1,), or (Ci,)
// for folded weights.
struct QuantizedW {
  at::Tensor q;
  at::Tensor step;
};

// ---- quantize.cpp ----

QuantizedX quantize_x_cpu(const at::Tensor& x, bool allow_unsigned);
QuantizedW quantize_w_cpu(const at::Tensor& w);
QuantizedW quantize_w_folded_cpu(const at::Tensor& w, const at::Tensor& g_threshold,
                                 int64_t groups);
// int8 channels-last, g's size; threshold float32 (Co,) or (1,). `moved`: uint8, each value + 128.
at::Tensor quantize_g_cpu(const at::Tensor& g, const at::Tensor& threshold,
                          const std::optional<at::Tensor>& seed, bool moved = false);

// ---- glue_forward.cpp ----

// Sum, sum of squares, minimum and maximum of each channel, float64 (4, C). y channels-last.
at::Tensor stats_of_cpu(const at::Tensor& y);

// ---- glue_backward.cpp ----

// As the op norm_act_reduce.
std::tuple<at::Tensor, at::Tensor> norm_act_reduce_cpu(
    const at::Tensor& g, const std::optional<at::Tensor>& g2, const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& grid,
    const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& invstd, bool want_gz);

// ---- forward.cpp ----

// Y = float(sum of (q_x - zero_point) * q_w) * (x_step * w_step) + bias, in out_dtype (float32,
// bfloat16, float16; int32 for the bare sums), in `format`: channels-last (of the rank) or
// contiguous. q_x uint8 channels-last, q_w int8 contiguous or channels-last, zero_point 0..255.
// `stats`, if given, becomes what stats_of_cpu gives for Y, which must be channels-last.
at::Tensor forward_cpu(const at::Tensor& q_x, float x_step, int32_t zero_point,
                       const at::Tensor& q_w, float w_step, const std::optional<at::Tensor>& bias,
                       const ConvGeometry& geometry, at::ScalarType out_dtype,
                       at::MemoryFormat format, at::Tensor* stats = nullptr);

// ---- grad_input.cpp ----

// Whether both products take a gradient of bytes + 128, which vpdpbusd needs as grad-input's rows
// and grad-weight's packing undoes at no cost.
bool takes_moved_gradient(const ConvGeometry& geometry);

// dX = float(sum of q_g * q_w) * step, in out_dtype and `format` as above. q_g channels-last, int8
// or, where takes_moved_gradient says so, uint8 of values + 128; q_w int8 contiguous or
// channels-last, step float32 (Ci,) or (1,) contiguous. `epilogue`, if given, is started where
// gemm_driver.h can take it; else the caller passes over dX itself.
at::Tensor grad_input_cpu(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                          const ConvGeometry& geometry, at::ScalarType out_dtype,
                          at::MemoryFormat format, BlockEpilogue* epilogue = nullptr);

// As the op; all arguments are checked.
at::Tensor checked_grad_input_cpu(const at::Tensor& q_g, const at::Tensor& q_w,
                                  const at::Tensor& step, at::IntArrayRef x_size,
                                  at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation, int64_t groups,
                                  at::ScalarType out_dtype, BlockEpilogue* epilogue = nullptr);

// ---- grad_weight.cpp ----

// dW = float(sum of (q_x - zero_point) * q_g) * (x_step * g_step of the row), in out_dtype (as for
// forward_cpu) and `format`: channels-last (of the rank) or contiguous. q_x uint8 channels-last,
// q_g as for grad_input_cpu, g_step float32 (Co,) contiguous, zero_point 0..255.
at::Tensor grad_weight_cpu(const at::Tensor& q_x, float x_step, int32_t zero_point,
                           const at::Tensor& q_g, const at::Tensor& g_step,
                           const ConvGeometry& geometry, at::ScalarType out_dtype,
                           at::MemoryFormat format);

}  // namespace daq_mm::cpu
