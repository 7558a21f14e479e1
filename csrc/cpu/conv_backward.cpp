// daq_mm::conv_backward: a layer's backward pass in one op.
//
//   q_g = g on its threshold's grid;  dX = q_g *T q_w,  dW = q_x (star) q_g,  db = sum of g
//
// g float of any layout, q_x uint8 channels-last. g is quantized once where both products use the
// same thresholds (folded with channel_grad_weight, or neither), twice otherwise; to bytes + 128
// where the products take those (products.h).

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "conv_geometry.h"
#include "cpu/channel_sums.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

at::MemoryFormat format_of(bool last, int64_t rank) {
  return last ? channels_last_format(rank) : at::MemoryFormat::Contiguous;
}

at::Tensor bias_gradient(const at::Tensor& g) {
  at::Tensor db = at::empty({g.size(1)}, g.options().dtype(at::kFloat));
  if (g.numel() == 0) return db.zero_();
  const auto sums = channel_sums(FloatView(g));
  std::copy(sums.begin(), sums.end(), db.mutable_data_ptr<float>());
  return db;
}

void check_arguments(const at::Tensor& g, const at::Tensor& q_x, const at::Tensor& x_qparams,
                     const at::Tensor& w, const at::Tensor& threshold,
                     const std::optional<at::Tensor>& seed, at::ScalarType x_dtype) {
  check_float(g, "g");
  check_float(w, "w");
  check_dtype(q_x, at::kByte, "q_x");
  check_dtype(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_dtype(threshold, at::kFloat, "threshold");
  check_seed(seed);
  TORCH_CHECK_TYPE(x_dtype == at::kFloat || x_dtype == at::kBFloat16 || x_dtype == at::kHalf,
                   "x_dtype is ", x_dtype, "; allowed: float32, bfloat16, float16");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_backward(
    const at::Tensor& g, const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& w,
    const at::Tensor& threshold, const std::optional<at::Tensor>& seed, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool folded,
    bool channel_grad_weight, std::array<bool, 3> output_mask, at::ScalarType x_dtype) {
  check_arguments(g, q_x, x_qparams, w, threshold, seed, x_dtype);
  const auto geometry =
      ConvGeometry::make(q_x.sizes(), w.sizes(), stride, padding, dilation, groups);
  check_size(g, geometry.out_size(), "g");
  check_size(threshold, {geometry.co + 1}, "threshold");
  const auto last = channels_last_format(geometry.rank);
  const at::Tensor thresholds = threshold.contiguous();
  const at::Tensor by_channel = thresholds.narrow(0, 0, geometry.co);
  const at::Tensor by_tensor = thresholds.narrow(0, geometry.co, 1);

  // Results must not share memory, those that are not computed neither.
  at::Tensor dx = at::empty({0}, g.options());
  at::Tensor dw = at::empty({0}, g.options());
  at::Tensor db = at::empty({0}, g.options());
  at::Tensor q_g;  // quantized with channel thresholds if q_g_by_channel
  bool q_g_by_channel = false;
  const auto quantized_g = [&](bool channels) {
    if (!q_g.defined() || q_g_by_channel != channels) {
      q_g = quantize_g_cpu(g, channels ? by_channel : by_tensor, seed,
                           takes_moved_gradient(geometry));
      q_g_by_channel = channels;
    }
    return q_g;
  };
  if (output_mask[0]) {
    QuantizedW q_w;
    if (folded) {
      q_w = quantize_w_folded_cpu(w, by_channel, groups);
    } else {
      q_w = quantize_w_cpu(w);
      float* step = q_w.step.mutable_data_ptr<float>();
      *step = *by_tensor.const_data_ptr<float>() / 127.0f * *step;
    }
    dx = grad_input_cpu(quantized_g(folded), q_w.q, q_w.step, geometry, x_dtype,
                        format_of(is_channels_last(g) || is_channels_last(w), geometry.rank));
  }
  if (output_mask[1]) {
    at::Tensor g_step = at::empty({geometry.co}, threshold.options());
    float* steps = g_step.mutable_data_ptr<float>();
    for (int64_t c = 0; c < geometry.co; ++c) {
      steps[c] = thresholds.const_data_ptr<float>()[channel_grad_weight ? c : geometry.co] / 127.0f;
    }
    const at::Tensor qparams = x_qparams.contiguous();
    const float* values = qparams.const_data_ptr<float>();
    dw = grad_weight_cpu(q_x.contiguous(last), values[0], checked_zero_point(values[1]),
                         quantized_g(channel_grad_weight), g_step, geometry, w.scalar_type(),
                         format_of(is_channels_last(w), geometry.rank));
  }
  if (output_mask[2]) db = bias_gradient(g);
  return {dx, dw, db};
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("conv_backward", &conv_backward); }

}  // namespace daq_mm::cpu
