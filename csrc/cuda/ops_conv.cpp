// Ops daq_mm::conv_forward, conv_backward and conv_forward_stats on CUDA: a layer's passes, each a
// sequence of launches. Steps, zero points and thresholds stay in device memory from one launch to
// the next, so that nothing waits for the device and a CUDA graph can hold it all.
//
//   forward   q_x = x on its grid, q_w = w on its own;  y = q_x * q_w, dequantized
//   backward  q_g = g on its threshold's grid;  dX = q_g *T q_w,  dW = q_x (star) q_g,  db = sum of g
//
// g is quantized once where both products use the same thresholds (folded with
// channel_grad_weight, or neither), twice otherwise.

#include <array>
#include <optional>
#include <tuple>

#include <torch/library.h>

#include "checks.h"
#include "conv_geometry.h"
#include "cuda/launches.h"
#include "cuda/op_tensors.h"
#include "cuda/products.h"

namespace daq_mm::cuda {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

at::MemoryFormat format_of(bool last, int64_t rank) {
  return last ? channels_last_format(rank) : at::MemoryFormat::Contiguous;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_forward_op(
    const at::Tensor& x, const at::Tensor& w, const MaybeTensor& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool allow_unsigned,
    at::ScalarType out_dtype) {
  const auto g = ConvGeometry::make(x.sizes(), w.sizes(), stride, padding, dilation, groups);
  check_float(x, "x");
  check_float(w, "w");
  check_same_device(w, x, "w");
  check_bias(bias, x.device(), g.co);
  check_out_dtype(out_dtype, false);
  const DeviceGuard guard(x.device());
  QuantizedX q_x = quantize_x_cuda(x, allow_unsigned);
  const QuantizedW q_w = quantize_w_cuda(w);
  at::Tensor y = forward_cuda(q_x.q, q_x.qparams, q_w.q, q_w.step, bias, g, out_dtype,
                              format_of(is_channels_last(x) || is_channels_last(w), g.rank));
  return {y, q_x.q, q_x.qparams};
}

std::tuple<at::Tensor, at::Tensor> conv_forward_stats_op(
    const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& w,
    const MaybeTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, at::ScalarType out_dtype, bool stats) {
  const auto g = ConvGeometry::make(q_x.sizes(), w.sizes(), stride, padding, dilation, groups);
  const at::Device device = q_x.device();
  check_channels_last(q_x, device, at::kByte, "q_x");
  check_contiguous(x_qparams, device, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_float(w, "w");
  check_same_device(w, q_x, "w");
  check_bias(bias, device, g.co);
  check_out_dtype(out_dtype, false);
  const DeviceGuard guard(device);
  const QuantizedW q_w = quantize_w_cuda(w);
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  at::Tensor statistics = stats ? at::empty({4, g.co}, options) : at::empty({0}, options);
  at::Tensor y = forward_cuda(q_x, x_qparams, q_w.q, q_w.step, bias, g, out_dtype,
                              channels_last_format(g.rank),
                              stats ? MaybeTensor(statistics) : MaybeTensor());
  return {y, statistics};
}

// float32 (count,): thresholds' steps, times a weight's step if given; one threshold serves all.
at::Tensor steps_of(const at::Tensor& threshold, int64_t count, const float* w_step) {
  at::Tensor steps = at::empty({count}, threshold.options());
  multiply_steps(threshold.const_data_ptr<float>(), threshold.numel(), w_step, count,
                 steps.mutable_data_ptr<float>(), current_stream());
  return steps;
}

void check_backward(const at::Tensor& g, const at::Tensor& q_x, const at::Tensor& x_qparams,
                    const at::Tensor& w, const at::Tensor& threshold, const MaybeTensor& seed,
                    const ConvGeometry& geometry, at::ScalarType x_dtype) {
  check_float(g, "g");
  check_size(g, geometry.out_size(), "g");
  check_float(w, "w");
  check_same_device(w, g, "w");
  check_dtype(q_x, at::kByte, "q_x");
  check_same_device(q_x, g, "q_x");
  check_dtype(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_same_device(x_qparams, g, "x_qparams");
  check_dtype(threshold, at::kFloat, "threshold");
  check_size(threshold, {geometry.co + 1}, "threshold");
  check_same_device(threshold, g, "threshold");
  check_seed(seed, g);
  TORCH_CHECK_TYPE(x_dtype == at::kFloat || x_dtype == at::kBFloat16 || x_dtype == at::kHalf,
                   "x_dtype is ", x_dtype, "; allowed: float32, bfloat16, float16");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_backward_op(
    const at::Tensor& g, const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& w,
    const at::Tensor& threshold, const MaybeTensor& seed, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool folded,
    bool channel_grad_weight, std::array<bool, 3> output_mask, at::ScalarType x_dtype) {
  const auto geometry =
      ConvGeometry::make(q_x.sizes(), w.sizes(), stride, padding, dilation, groups);
  check_backward(g, q_x, x_qparams, w, threshold, seed, geometry, x_dtype);
  const DeviceGuard guard(g.device());
  const auto last = channels_last_format(geometry.rank);
  const at::Tensor thresholds = threshold.contiguous();
  const at::Tensor by_channel = thresholds.narrow(0, 0, geometry.co);
  const at::Tensor by_tensor = thresholds.narrow(0, geometry.co, 1);

  // Results must not share memory, those that are not computed neither.
  const auto options = g.options().memory_format(at::MemoryFormat::Contiguous);
  at::Tensor dx = at::empty({0}, options), dw = at::empty({0}, options);
  at::Tensor db = at::empty({0}, options);
  at::Tensor q_g;  // quantized with channel thresholds if q_g_by_channel
  bool q_g_by_channel = false;
  const auto quantized_g = [&](bool channels) {
    if (!q_g.defined() || q_g_by_channel != channels) {
      q_g = quantize_g_cuda(g, channels ? by_channel : by_tensor, seed);
      q_g_by_channel = channels;
    }
    return q_g;
  };
  if (output_mask[0]) {
    QuantizedW q_w;
    if (folded) {
      q_w = quantize_w_folded_cuda(w, by_channel, groups);
    } else {
      q_w = quantize_w_cuda(w);
      q_w.step = steps_of(by_tensor, 1, q_w.step.const_data_ptr<float>());
    }
    dx = grad_input_cuda(quantized_g(folded), q_w.q, q_w.step, geometry, x_dtype,
                         format_of(is_channels_last(g) || is_channels_last(w), geometry.rank));
  }
  if (output_mask[1]) {
    const at::Tensor g_step =
        steps_of(channel_grad_weight ? by_channel : by_tensor, geometry.co, nullptr);
    dw = grad_weight_cuda(q_x.contiguous(last), x_qparams.contiguous(),
                          quantized_g(channel_grad_weight), g_step, geometry, w.scalar_type(),
                          format_of(is_channels_last(w), geometry.rank));
  }
  if (output_mask[2]) db = channel_sums_cuda(g);
  return {dx, dw, db};
}

}  // namespace

DAQ_MM_CUDA_IMPL(m) {
  m.impl("conv_forward", &conv_forward_op);
  m.impl("conv_forward_stats", &conv_forward_stats_op);
  m.impl("conv_backward", &conv_backward_op);
}

}  // namespace daq_mm::cuda
