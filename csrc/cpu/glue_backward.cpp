// daq_mm::norm_act_reduce: a unit's gradient before its activation and the sums of batch norm's
// backward pass; daq_mm::norm_backward_apply, _maxima and _quantize: that pass itself.
//
//   gz = mask ? g [+ g2] : 0;  y_hat = low + code * step, or y
//   sums of gz and of gz * (y_hat - mean) * invstd
//   dy = a * gz + b * y_hat + c, rounded to D: stored, reduced to its maxima, or quantized
//
// g in D (float32, bfloat16 or float16), y in D or uint8 codes, all channels-last. dy is cheap, so the
// maxima and the quantizer compute it anew rather than write it. The loops are in glue_body.h.

#include <algorithm>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/glue.h"
#include "cpu/glue_arrays.h"
#include "cpu/glue_gradient.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {

std::tuple<at::Tensor, at::Tensor> norm_act_reduce_cpu(const at::Tensor& g, const MaybeTensor& g2,
                                                       const MaybeTensor& mask,
                                                       const MaybeTensor& y,
                                                       const MaybeTensor& grid,
                                                       const MaybeTensor& mean,
                                                       const MaybeTensor& invstd, bool want_gz) {
  Gradient gradient(g, mask, y, grid);
  gradient.set_statistics(g2, mean, invstd, g);
  const int64_t channels = g.size(1), width = gradient.width;
  at::Tensor gz = at::empty({0}, at::TensorOptions().dtype(g.scalar_type()));
  if (want_gz) {
    gz = empty_results(g.sizes(), gz.options(), channels_last_format(g.dim() - 2));
    gradient.task.out = gz.data_ptr();
  }
  if (g.numel() == 0) return {gz, at::zeros({2, channels}, at::kDouble)};
  const auto loop = glue_loops().reduce[gradient.dtype][static_cast<int>(gradient.kind)];
  const PixelParts parts(g);
  std::vector<double> partial(parts.count * 2 * width, 0.0);
  parts.run([&](int64_t part, int64_t first, int64_t last) {
    loop(gradient.task, first, last, partial.data() + part * 2 * width);
  });
  return {gz, sums_of_parts(partial, channels)};
}

namespace {

at::Tensor norm_backward_coefficients(const at::Tensor& sums, double count,
                                      const MaybeTensor& weight, const at::Tensor& mean,
                                      const at::Tensor& invstd) {
  check_dtype(sums, at::kDouble, "sums");
  TORCH_CHECK_VALUE(sums.dim() == 2 && sums.size(0) == 2, "sums has size ", sums.sizes(),
                    "; expected (2, C)");
  const int64_t channels = sums.size(1);
  check_mean_and_invstd(mean, invstd, channels);
  if (weight.has_value()) check_size(*weight, {channels}, "weight");
  const std::vector<float> means = to_floats(mean), invstds = to_floats(invstd);
  const std::vector<float> weights =
      weight.has_value() ? to_floats(*weight) : std::vector<float>(channels, 1.0f);
  const auto values = sums.accessor<double, 2>();
  at::Tensor coefficients = at::empty({3, channels}, at::kFloat);
  float* out = coefficients.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = invstds[c];
    const double scale = inverse * weights[c];
    const double b = -(scale * inverse * (values[1][c] / count));
    out[c] = static_cast<float>(scale);
    out[channels + c] = static_cast<float>(b);
    out[2 * channels + c] = static_cast<float>(-(scale * (values[0][c] / count)) - b * means[c]);
  }
  return coefficients;
}

at::Tensor norm_backward_apply(const at::Tensor& g, const MaybeTensor& mask, const MaybeTensor& y,
                               const MaybeTensor& grid, const at::Tensor& coefficients) {
  Gradient gradient(g, mask, y, grid);
  gradient.set_coefficients(coefficients);
  at::Tensor dy = empty_results(g.sizes(), at::TensorOptions().dtype(g.scalar_type()),
                                channels_last_format(g.dim() - 2));
  gradient.task.out = dy.data_ptr();
  const auto loop = glue_loops().apply[gradient.dtype][static_cast<int>(gradient.kind)];
  for_pixels(g, [&](int64_t first, int64_t last) { loop(gradient.task, first, last); });
  return dy;
}

at::Tensor norm_backward_maxima(const at::Tensor& g, const MaybeTensor& mask, const MaybeTensor& y,
                                const MaybeTensor& grid, const at::Tensor& coefficients) {
  Gradient gradient(g, mask, y, grid);
  gradient.set_coefficients(coefficients);
  const int64_t channels = gradient.task.channels, width = gradient.width;
  at::Tensor maxima = at::zeros({channels + 1}, at::kFloat);
  if (g.numel() == 0) return maxima;
  const auto loop = glue_loops().maxima[gradient.dtype][static_cast<int>(gradient.kind)];
  const PixelParts parts(g);
  std::vector<uint32_t> partial(parts.count * width, 0);
  parts.run([&](int64_t part, int64_t first, int64_t last) {
    loop(gradient.task, first, last, partial.data() + part * width);
  });
  uint32_t most = 0;
  float* out = maxima.data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    uint32_t of_channel = 0;
    for (int64_t part = 0; part < parts.count; ++part) {
      of_channel = std::max(of_channel, partial[part * width + c]);
    }
    out[c] = float_from_bits(of_channel);
    most = std::max(most, of_channel);
  }
  out[channels] = float_from_bits(most);
  return maxima;
}

at::Tensor norm_backward_quantize(const at::Tensor& g, const MaybeTensor& mask,
                                  const MaybeTensor& y, const MaybeTensor& grid,
                                  const at::Tensor& coefficients, const at::Tensor& threshold,
                                  const MaybeTensor& seed) {
  Gradient gradient(g, mask, y, grid);
  gradient.set_coefficients(coefficients);
  GradientTask& task = gradient.task;
  const int64_t channels = task.channels;
  check_dtype(threshold, at::kFloat, "threshold");
  TORCH_CHECK_VALUE(
      threshold.dim() == 1 && (threshold.size(0) == 1 || threshold.size(0) == channels),
      "threshold has size ", threshold.sizes(), "; expected [1] or [", channels, "]");
  check_seed(seed);
  const std::vector<float> thresholds = to_floats(threshold);
  std::vector<float> inverse(channels);
  for (int64_t c = 0; c < channels; ++c) {
    inverse[c] = inverse_step(thresholds[thresholds.size() == 1 ? 0 : c], 127.0f);
  }
  inverse = padded_channels(inverse);
  at::Tensor q = empty_results(g.sizes(), at::kChar, channels_last_format(g.dim() - 2));
  task.q = q.data_ptr<int8_t>();
  task.q_inverse = inverse.data();
  task.random = seed.has_value();
  if (task.random) task.seed = static_cast<uint32_t>(*seed->const_data_ptr<int64_t>());
  const auto loop = glue_loops().quantize[gradient.dtype][static_cast<int>(gradient.kind)];
  for_pixels(g, [&](int64_t first, int64_t last) { loop(task, first, last); });
  return q;
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("norm_act_reduce", &norm_act_reduce_cpu);
  m.impl("norm_backward_coefficients", &norm_backward_coefficients);
  m.impl("norm_backward_apply", &norm_backward_apply);
  m.impl("norm_backward_maxima", &norm_backward_maxima);
  m.impl("norm_backward_quantize", &norm_backward_quantize);
}

}  // namespace daq_mm::cpu
