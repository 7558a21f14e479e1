// daq_mm::norm_act_forward: batch norm, residual, activation and quantization of a convolution's
// output y; daq_mm::batch_norm_statistics and daq_mm::stats_of: what it needs to know before.
//
//   v = y * scale + shift [+ residual], rounded to D;  out = act(v)
//   q = quantize_x(out);  codes = y on 8 bits a channel;  mask = where act passes the gradient
//
// D float32, bfloat16 or float16; all channels-last. Every step from y to out is monotone, so out's
// extremes follow from those of y's channels and one pass quantizes; with a residual, one pass finds
// them and a second one quantizes. The loops are in glue_body.h.

#include <atomic>
#include <cmath>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/glue.h"
#include "cpu/glue_arrays.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {

at::Tensor stats_of_cpu(const at::Tensor& y) {
  const int64_t channels = y.size(1), width = glue_width(channels);
  at::Tensor stats = at::zeros({4, channels}, y.options().dtype(at::kDouble).memory_format(
                                                  at::MemoryFormat::Contiguous));
  if (y.numel() == 0) return stats;
  const PixelParts parts(y);
  std::vector<double> sums(parts.count * 2 * width, 0.0);
  std::vector<float> least(parts.count * width, std::numeric_limits<float>::infinity());
  std::vector<float> most(parts.count * width, -std::numeric_limits<float>::infinity());
  const auto loop = glue_loops().stats[glue_dtype(y.scalar_type())];
  parts.run([&](int64_t part, int64_t first, int64_t last) {
    double* sum = sums.data() + part * 2 * width;
    loop(y.const_data_ptr(), channels, first, last,
         {sum, sum + width, least.data() + part * width, most.data() + part * width});
  });
  double* out = stats.mutable_data_ptr<double>();
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0;
    float low = least[c], high = most[c];
    for (int64_t part = 0; part < parts.count; ++part) {
      sum += sums[part * 2 * width + c];
      squares += sums[part * 2 * width + width + c];
      low = std::min(low, least[part * width + c]);
      high = std::max(high, most[part * width + c]);
    }
    // The extremes pass a NaN over; a sum of squares cannot become one without it.
    const bool nan = std::isnan(squares);
    out[c] = sum;
    out[channels + c] = squares;
    out[2 * channels + c] = nan ? squares : low;
    out[3 * channels + c] = nan ? squares : high;
  }
  return stats;
}

namespace {

at::Tensor stats_of(const at::Tensor& y) {
  check_float(y, "y");
  check_spatial_rank(y, "y");
  return stats_of_cpu(y.contiguous(channels_last_format(y.dim() - 2)));
}

void move_average(const MaybeTensor& running, const std::vector<double>& batch, double momentum) {
  if (!running.has_value()) return;
  const std::vector<float> before = to_floats(*running);
  at::Tensor after = at::empty(running->sizes(), at::kDouble);
  for (size_t c = 0; c < batch.size(); ++c) {
    after.mutable_data_ptr<double>()[c] =
        static_cast<double>(before[c]) * (1 - momentum) + batch[c] * momentum;
  }
  running->copy_(after);
}

std::tuple<at::Tensor, at::Tensor> batch_norm_statistics(const at::Tensor& stats, double count,
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
    check_size(**running, {channels}, name);
  }
  at::Tensor mean = at::empty({channels}, stats.options().dtype(at::kFloat));
  at::Tensor invstd = at::empty({channels}, mean.options());
  std::vector<double> means(channels), unbiased(channels);
  const auto values = stats.accessor<double, 2>();
  for (int64_t c = 0; c < channels; ++c) {
    means[c] = values[0][c] / count;
    double var = values[1][c] / count - means[c] * means[c];
    if (var < 0) var = 0;
    unbiased[c] = var * (count / (count - 1));
    mean.mutable_data_ptr<float>()[c] = static_cast<float>(means[c]);
    // Squares beyond float32 must not end as zeros.
    invstd.mutable_data_ptr<float>()[c] =
        std::isinf(var) ? std::numeric_limits<float>::quiet_NaN()
                        : static_cast<float>(1 / std::sqrt(var + eps));
  }
  move_average(running_mean, means, momentum);
  move_average(running_var, unbiased, momentum);
  return {mean, invstd};
}

// The affine map of a norm; without one, what leaves every float as it is, -0 too.
struct Affine {
  std::vector<float> scale, shift;

  Affine(const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
         const MaybeTensor& invstd, int64_t channels)
      : scale(channels, 1.0f), shift(channels, -0.0f) {
    if (mean.has_value()) {
      scale = to_floats(*invstd);
      const std::vector<float> means = to_floats(*mean);
      if (weight.has_value()) {
        const std::vector<float> weights = to_floats(*weight);
        for (int64_t c = 0; c < channels; ++c) scale[c] *= weights[c];
      }
      shift = bias.has_value() ? to_floats(*bias) : std::vector<float>(channels, 0.0f);
      for (int64_t c = 0; c < channels; ++c) shift[c] -= means[c] * scale[c];
    }
    scale = padded_channels(scale);
    shift = padded_channels(shift);
  }
};

float rounded_to(at::ScalarType type, float v) {
  if (type == at::kBFloat16) return static_cast<float>(static_cast<c10::BFloat16>(v));
  if (type == at::kHalf) return static_cast<float>(static_cast<c10::Half>(v));
  return v;
}

float activated(float v, int64_t act) {
  if (act != 0 && v <= 0) return 0;
  return act == 2 && v >= 6 ? 6.0f : v;
}

uint32_t bits(float v) {
  uint32_t b;
  std::memcpy(&b, &v, sizeof(b));
  return b;
}

// The grid of out without residual, from the extremes of y's channels.
ActivationGrid grid_from_stats(const double* least, const double* most, const Affine& affine,
                               int64_t channels, at::ScalarType type, int64_t act,
                               bool allow_unsigned) {
  uint32_t magnitude = 0, raw = 0;
  for (int64_t c = 0; c < channels; ++c) {
    for (const double extreme : {least[c], most[c]}) {
      float v = static_cast<float>(extreme) * affine.scale[c];
      v = activated(rounded_to(type, v + affine.shift[c]), act);
      magnitude = std::max(magnitude, bits(v) & 0x7fffffffu);
      raw = std::max(raw, bits(v));
    }
  }
  return activation_grid(magnitude, raw, allow_unsigned);
}

void atomic_maximum(std::atomic<uint32_t>& target, uint32_t value) {
  uint32_t seen = target.load(std::memory_order_relaxed);
  while (seen < value && !target.compare_exchange_weak(seen, value)) {
  }
}

// The grid of the codes: float32 (2, C), and its points per unit.
std::vector<float> fill_code_grid(const double* least, const double* most, int64_t channels,
                                  float* grid) {
  std::vector<float> inverse(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const float low = static_cast<float>(least[c]);
    const float range = static_cast<float>(most[c]) - low;
    grid[c] = low;
    grid[channels + c] = range / 255.0f;
    const float points = 255.0f / range;
    inverse[c] = std::isfinite(points) ? points : 0.0f;
  }
  return padded_channels(inverse);
}

void check_forward(const at::Tensor& y, const at::Tensor& stats, const MaybeTensor& weight,
                   const MaybeTensor& bias, const MaybeTensor& mean, const MaybeTensor& invstd,
                   const MaybeTensor& residual, int64_t act, bool reads_stats) {
  check_activation(y, "y");
  const int64_t channels = y.size(1);
  check_mean_and_invstd(mean, invstd, channels);
  TORCH_CHECK_VALUE(mean.has_value() || (!weight.has_value() && !bias.has_value()),
                    "weight and bias need mean and invstd");
  for (const auto& [t, name] : {std::pair{&weight, "weight"}, std::pair{&bias, "bias"}}) {
    if (!t->has_value()) continue;
    check_float(**t, name);
    check_size(**t, {channels}, name);
  }
  if (residual.has_value()) check_alike(*residual, y, y.scalar_type(), "residual");
  TORCH_CHECK_VALUE(act >= 0 && act <= 2, "act=", act,
                    "; allowed: 0 (none), 1 (ReLU), 2 (ReLU6)");
  if (!reads_stats) return;
  check_dtype(stats, at::kDouble, "stats");
  check_size(stats, {4, channels}, "stats");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
norm_act_forward(const at::Tensor& y, const at::Tensor& stats, const MaybeTensor& weight,
                 const MaybeTensor& bias, const MaybeTensor& mean, const MaybeTensor& invstd,
                 const MaybeTensor& residual, int64_t act, bool want_out, bool want_q,
                 bool allow_unsigned, bool want_codes) {
  const bool q_at_once = want_q && !residual.has_value();
  check_forward(y, stats, weight, bias, mean, invstd, residual, act,
                !residual.has_value() || want_codes);
  const int64_t channels = y.size(1);
  const auto type = y.scalar_type();
  const auto format = channels_last_format(y.dim() - 2);
  const auto nothing = [&](at::ScalarType t) {
    return at::empty({0}, at::TensorOptions().dtype(t));
  };
  const auto alike = [&](bool wanted, at::ScalarType t) {
    return wanted ? empty_results(y.sizes(), at::TensorOptions().dtype(t), format) : nothing(t);
  };
  at::Tensor q = alike(q_at_once, at::kByte), qparams = at::empty({2}, at::kFloat);
  at::Tensor codes = alike(want_codes, at::kByte), grid = nothing(at::kFloat);
  at::Tensor out = alike(want_out || (want_q && !q_at_once), type);
  at::Tensor mask = nothing(at::kByte);
  if (act != 0) mask = at::empty(mask_size(y), mask.options());

  const Affine affine(weight, bias, mean, invstd, channels);
  const at::Tensor dense_stats = stats.contiguous();
  NormActTask task{};
  task.channels = channels;
  task.y = y.const_data_ptr();
  if (residual.has_value()) task.residual = residual->const_data_ptr();
  task.scale = affine.scale.data();
  task.shift = affine.shift.data();
  task.act = act;
  if (out.numel() > 0) task.out = out.data_ptr();
  if (act != 0) task.mask = mask.data_ptr<uint8_t>();
  std::vector<float> low, inverse;
  if (want_codes) {
    grid = at::empty({2, channels}, grid.options());
    float* values = grid.data_ptr<float>();
    const double* extremes = dense_stats.const_data_ptr<double>() + 2 * channels;
    inverse = fill_code_grid(extremes, extremes + channels, channels, values);
    low = padded_channels(std::vector<float>(values, values + channels));
    task.low = low.data();
    task.inverse = inverse.data();
    task.codes = codes.data_ptr<uint8_t>();
  }
  ActivationGrid q_grid{};
  if (!residual.has_value()) {
    const double* extremes = dense_stats.const_data_ptr<double>() + 2 * channels;
    q_grid = grid_from_stats(extremes, extremes + channels, affine, channels, type, act,
                             allow_unsigned);
  }
  if (q_at_once) {
    task.q = q.data_ptr<uint8_t>();
    task.q_inverse = q_grid.inverse();
    task.q_levels = q_grid.levels;
    task.zero_point = q_grid.zero_point;
  }
  const auto loop = glue_loops().norm_act[glue_dtype(type)][residual.has_value()];
  std::atomic<uint32_t> magnitude{0}, raw{0};
  for_pixels(y, [&](int64_t first, int64_t last) {
    uint32_t m = 0, r = 0;
    loop(task, first, last, &m, &r);
    atomic_maximum(magnitude, m);
    atomic_maximum(raw, r);
  });
  if (residual.has_value()) q_grid = activation_grid(magnitude, raw, allow_unsigned);
  if (want_q && !q_at_once) q = quantize_x_cpu(out, q_grid).q;
  qparams.data_ptr<float>()[0] = q_grid.step();
  qparams.data_ptr<float>()[1] = static_cast<float>(q_grid.zero_point);
  if (!want_out) out = nothing(type);
  return {out, q, qparams, codes, grid, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("stats_of", &stats_of);
  m.impl("batch_norm_statistics", &batch_norm_statistics);
  m.impl("norm_act_forward", &norm_act_forward);
}

}  // namespace daq_mm::cpu
