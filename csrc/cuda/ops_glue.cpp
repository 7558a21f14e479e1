// Ops of daq_mm/ops/glue.py on CUDA, but for the convolution: checks, allocation and launches.
// Kernels: glue_forward.cu, glue_backward.cu.

#include <tuple>
#include <utility>
#include <vector>

#include <torch/library.h>

#include "cuda/glue_operands.h"
#include "cuda/launches.h"

namespace daq_mm::cuda {
namespace {

at::Tensor stats_of_op(const at::Tensor& y) {
  check_float(y, "y");
  check_spatial_rank(y, "y");
  const DeviceGuard guard(y.device());
  const at::Tensor dense = y.contiguous(channels_last_format(y.dim() - 2));
  const GlueSize size = size_of(y);
  at::Tensor stats = at::empty({4, y.size(1)}, nothing(y, at::kDouble).options());
  const at::Tensor space = workspace(stats_workspace(size), y.device());
  stats_of(size, dense.const_data_ptr(), space.mutable_data_ptr(),
           stats.mutable_data_ptr<double>(), current_stream());
  return stats;
}

std::tuple<at::Tensor, at::Tensor> batch_norm_statistics_op(const at::Tensor& stats, double count,
                                                            const MaybeTensor& running_mean,
                                                            const MaybeTensor& running_var,
                                                            double momentum, double eps) {
  check_dtype(stats, at::kDouble, "stats");
  TORCH_CHECK_VALUE(stats.dim() == 2 && stats.size(0) == 4, "stats has size ", stats.sizes(),
                    "; expected (4, C)");
  TORCH_CHECK_VALUE(count > 1, "count=", count,
                    " must be above 1: a variance needs two values a channel");
  const int64_t channels = stats.size(1);
  for (const auto& [running, name] : {std::pair{&running_mean, "running_mean"},
                                      std::pair{&running_var, "running_var"}}) {
    if (!running->has_value()) continue;
    check_float(**running, name);
    check_state(**running, (*running)->scalar_type(), {channels}, stats, name);
  }
  const DeviceGuard guard(stats.device());
  const at::Tensor dense = stats.contiguous();
  at::Tensor mean = at::empty({channels}, stats.options().dtype(at::kFloat));
  at::Tensor invstd = at::empty({channels}, mean.options());
  BatchNormStatistics arguments{};
  arguments.stats = dense.const_data_ptr<double>();
  arguments.channels = channels;
  arguments.count = count;
  arguments.momentum = momentum;
  arguments.eps = eps;
  if (running_mean.has_value()) {
    arguments.running_mean = running_mean->mutable_data_ptr();
    arguments.running_mean_type = float_type_of(running_mean->scalar_type());
  }
  if (running_var.has_value()) {
    arguments.running_var = running_var->mutable_data_ptr();
    arguments.running_var_type = float_type_of(running_var->scalar_type());
  }
  arguments.mean = mean.mutable_data_ptr<float>();
  arguments.invstd = invstd.mutable_data_ptr<float>();
  batch_norm_statistics(arguments, current_stream());
  return {mean, invstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
norm_act_forward_op(const at::Tensor& y, const at::Tensor& stats, const MaybeTensor& weight,
                    const MaybeTensor& bias, const MaybeTensor& mean, const MaybeTensor& invstd,
                    const MaybeTensor& residual, int64_t act, bool want_out, bool want_q,
                    bool allow_unsigned, bool want_codes) {
  check_activation(y, "y");
  const DeviceGuard guard(y.device());
  const int64_t channels = y.size(1);
  const auto type = y.scalar_type();
  check_mean_and_invstd(mean, invstd);
  TORCH_CHECK_VALUE(mean.has_value() || (!weight.has_value() && !bias.has_value()),
                    "weight and bias need mean and invstd");
  TORCH_CHECK_VALUE(act >= 0 && act <= 2, "act=", act,
                    "; allowed: 0 (none), 1 (ReLU), 2 (ReLU6)");
  ChannelVectors vectors(y);
  NormActForward a{};
  a.y = y.const_data_ptr();
  a.mean = vectors.floats(mean, {channels}, "mean");
  a.invstd = vectors.floats(invstd, {channels}, "invstd");
  a.weight = vectors.any(weight, channels, "weight");
  a.bias = vectors.any(bias, channels, "bias");
  if (residual.has_value()) {
    check_alike(*residual, y, type, "residual");
    a.residual = residual->const_data_ptr();
  }
  if (want_codes || !residual.has_value()) {
    a.stats = vectors.hold(stats, at::kDouble, {4, channels}, "stats").const_data_ptr<double>();
  }
  a.act = static_cast<Activation>(act);
  a.allow_unsigned = allow_unsigned;

  const auto alike = [&](bool wanted, at::ScalarType dtype) {
    return wanted ? empty_channels_last(y, dtype) : nothing(y, dtype);
  };
  at::Tensor out = alike(want_out || (want_q && residual.has_value()), type);
  at::Tensor q = alike(want_q, at::kByte), codes = alike(want_codes, at::kByte);
  at::Tensor grid = nothing(y, at::kFloat), mask = nothing(y, at::kByte);
  at::Tensor qparams = at::empty({2}, grid.options());
  if (want_codes) grid = at::empty({2, channels}, grid.options());
  if (act != 0) mask = at::empty(mask_size(y), mask.options());
  const at::Tensor extremes = workspace(kExtremes * sizeof(uint32_t), y.device());
  a.extremes = static_cast<uint32_t*>(extremes.mutable_data_ptr());
  if (want_out || (want_q && residual.has_value())) a.out = out.mutable_data_ptr();
  if (want_q) a.q = q.mutable_data_ptr<uint8_t>();
  a.qparams = qparams.mutable_data_ptr<float>();
  if (want_codes) a.codes = codes.mutable_data_ptr<uint8_t>();
  if (want_codes) a.grid = grid.mutable_data_ptr<float>();
  if (act != 0) a.mask = mask.mutable_data_ptr<uint8_t>();
  norm_act_forward(a, size_of(y), current_stream());
  if (!want_out) out = nothing(y, type);
  return {out, q, qparams, codes, grid, mask};
}

at::Tensor quantize_x_with_op(const at::Tensor& x, const at::Tensor& qparams) {
  check_float(x, "x");
  check_spatial_rank(x, "x");
  check_same_device(qparams, x, "qparams");
  check_dtype(qparams, at::kFloat, "qparams");
  check_size(qparams, {2}, "qparams");
  const DeviceGuard guard(x.device());
  const ImageView view(x);
  const at::Tensor grid = qparams.contiguous();
  at::Tensor q = empty_channels_last(x, at::kByte);
  quantize_x_with(view.image, grid.const_data_ptr<float>(), q.mutable_data_ptr<uint8_t>(),
                  current_stream());
  return q;
}

at::Tensor norm_backward_coefficients_op(const at::Tensor& sums, double count,
                                         const MaybeTensor& weight, const at::Tensor& mean,
                                         const at::Tensor& invstd) {
  check_dtype(sums, at::kDouble, "sums");
  TORCH_CHECK_VALUE(sums.dim() == 2 && sums.size(0) == 2, "sums has size ", sums.sizes(),
                    "; expected (2, C)");
  const int64_t channels = sums.size(1);
  const DeviceGuard guard(sums.device());
  ChannelVectors vectors(sums);
  at::Tensor coefficients = at::empty({3, channels}, sums.options().dtype(at::kFloat));
  BatchNormCoefficients a{};
  a.sums = vectors.hold(sums, at::kDouble, {2, channels}, "sums").const_data_ptr<double>();
  a.channels = channels;
  a.count = count;
  a.weight = vectors.any(weight, channels, "weight");
  a.mean = vectors.floats(mean, {channels}, "mean");
  a.invstd = vectors.floats(invstd, {channels}, "invstd");
  a.coefficients = coefficients.mutable_data_ptr<float>();
  norm_backward_coefficients(a, current_stream());
  return coefficients;
}

std::tuple<at::Tensor, at::Tensor> norm_act_reduce_op(
    const at::Tensor& g, const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
    const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd, bool want_gz) {
  const DeviceGuard guard(g.device());
  GradientOperands operands(g, mask, y, grid);
  NormActReduce a = operands.reduce(g2, mean, invstd);
  const GlueSize size = size_of(g);
  at::Tensor gz = want_gz ? empty_channels_last(g, g.scalar_type()) : nothing(g, g.scalar_type());
  at::Tensor sums = at::empty({2, g.size(1)}, nothing(g, at::kDouble).options());
  a.gz = want_gz ? gz.mutable_data_ptr() : nullptr;
  a.sums = sums.mutable_data_ptr<double>();
  const at::Tensor space = workspace(norm_act_reduce_workspace(size), g.device());
  norm_act_reduce(a, size, space.mutable_data_ptr(), current_stream());
  return {gz, sums};
}

at::Tensor norm_backward_apply_op(const at::Tensor& g, const MaybeTensor& mask,
                                  const MaybeTensor& y, const MaybeTensor& grid,
                                  const at::Tensor& coefficients) {
  const DeviceGuard guard(g.device());
  GradientOperands operands(g, mask, y, grid);
  const NormBackward a = operands.backward(coefficients, g.size(1));
  at::Tensor dy = empty_channels_last(g, g.scalar_type());
  norm_backward_apply(a, size_of(g), dy.mutable_data_ptr(), current_stream());
  return dy;
}

at::Tensor norm_backward_maxima_op(const at::Tensor& g, const MaybeTensor& mask,
                                   const MaybeTensor& y, const MaybeTensor& grid,
                                   const at::Tensor& coefficients) {
  const DeviceGuard guard(g.device());
  GradientOperands operands(g, mask, y, grid);
  const NormBackward a = operands.backward(coefficients, g.size(1));
  at::Tensor maxima = at::empty({g.size(1) + 1}, nothing(g, at::kFloat).options());
  norm_backward_maxima(a, size_of(g), maxima.mutable_data_ptr<float>(), current_stream());
  return maxima;
}

at::Tensor norm_backward_quantize_op(const at::Tensor& g, const MaybeTensor& mask,
                                     const MaybeTensor& y, const MaybeTensor& grid,
                                     const at::Tensor& coefficients, const at::Tensor& threshold,
                                     const MaybeTensor& seed) {
  const DeviceGuard guard(g.device());
  GradientOperands operands(g, mask, y, grid);
  const NormBackward a = operands.backward(coefficients, g.size(1));
  check_threshold(threshold, g);
  check_seed(seed, g);
  const at::Tensor thresholds = threshold.contiguous();
  at::Tensor q = empty_channels_last(g, at::kChar);
  norm_backward_quantize(a, size_of(g), thresholds.const_data_ptr<float>(), thresholds.numel(),
                         seed.has_value() ? seed->const_data_ptr<int64_t>() : nullptr,
                         q.mutable_data_ptr<int8_t>(), current_stream());
  return q;
}

}  // namespace

DAQ_MM_CUDA_IMPL(m) {
  m.impl("stats_of", &stats_of_op);
  m.impl("batch_norm_statistics", &batch_norm_statistics_op);
  m.impl("norm_act_forward", &norm_act_forward_op);
  m.impl("quantize_x_with", &quantize_x_with_op);
  m.impl("norm_backward_coefficients", &norm_backward_coefficients_op);
  m.impl("norm_act_reduce", &norm_act_reduce_op);
  m.impl("norm_backward_apply", &norm_backward_apply_op);
  m.impl("norm_backward_maxima", &norm_backward_maxima_op);
  m.impl("norm_backward_quantize", &norm_backward_quantize_op);
}

}  // namespace daq_mm::cuda
