// Op daq_mm::forward: Y = float(sum of (q_x - zero point) * q_w) * (x step * w step) + bias.
//
// q_x uint8 (N, Ci, *spatial) channels-last, q_w int8 (Co, Ci / groups, *kernel) contiguous; each
// float operation is rounded on its own, so that results equal the reference's bit for bit.
// Sums run over the taps of the kernel and the channels of a group (gemm_driver.h); results run
// along output channels. Depthwise convolutions have their own kernels (depthwise.h).

#include <numeric>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/depthwise.h"
#include "cpu/gemm_driver.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

// The stem of a network: so few channels that one tap would leave most of a step of 4 empty.
// Then a whole kernel row counts as one tap of kernel width x channels values.
bool merges_width(const ConvGeometry& g, int64_t step_channels) {
  const int64_t width = g.kernel[2];
  if (g.groups != 1 || width == 1 || g.dilation[2] != 1 || g.ci > 16) return false;
  const int64_t merged = (width * g.ci + step_channels - 1) / step_channels;
  const int64_t apart = width * ((g.ci + step_channels - 1) / step_channels);
  return merged < apart;
}

// q_w (Co, Ci, D, H, W), contiguous or channels-last, as (Co, W * Ci, D * H), for merged kernel
// rows.
std::vector<int8_t> merged_weight(const at::Tensor& q_w, const ConvGeometry& g) {
  const int64_t rows = g.kernel[0] * g.kernel[1];
  const int64_t width = g.kernel[2];
  const bool last = !q_w.is_contiguous();
  const int64_t ci_stride = last ? 1 : g.taps(), tap_stride = last ? g.ci : 1;
  const int8_t* w = q_w.const_data_ptr<int8_t>();
  std::vector<int8_t> merged(g.co * g.ci * g.taps());
  for (int64_t co = 0; co < g.co; ++co, w += g.ci * g.taps()) {
    for (int64_t ci = 0; ci < g.ci; ++ci) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t x = 0; x < width; ++x) {
          merged[((co * width + x) * g.ci + ci) * rows + r] =
              w[ci * ci_stride + (r * width + x) * tap_stride];
        }
      }
    }
  }
  return merged;
}

// The product, with statistics of y on the way where that can be, else by a pass over it.
void multiply(const GemmProblem& problem, Capability capability, at::Tensor& y,
              at::Tensor* stats) {
  if (stats != nullptr && takes_stats(problem, capability, y)) {
    *stats = at::empty({4, y.size(1)}, at::kDouble);
    run_gemm(problem, capability, y, stats->mutable_data_ptr<double>());
    return;
  }
  run_gemm(problem, capability, y);
  if (stats != nullptr) *stats = stats_of_cpu(y);
}

}  // namespace

Phase forward_phase(const ConvGeometry& g, bool merge_width) {
  Phase phase;
  phase.count = g.out;
  phase.multiplier = g.stride;
  const int64_t width = merge_width ? 1 : g.kernel[2];
  for (int64_t d = 0; d < g.kernel[0]; ++d) {
    for (int64_t h = 0; h < g.kernel[1]; ++h) {
      for (int64_t w = 0; w < width; ++w) {
        phase.shifts.push_back({d * g.dilation[0] - g.pad_begin[0],
                                h * g.dilation[1] - g.pad_begin[1],
                                merge_width ? 0 : w * g.dilation[2] - g.pad_begin[2]});
      }
    }
  }
  return phase;
}

at::Tensor forward_cpu(const at::Tensor& q_x, float x_step, int32_t zero_point,
                       const at::Tensor& q_w, float w_step, const std::optional<at::Tensor>& bias,
                       const ConvGeometry& g, at::ScalarType out_dtype, at::MemoryFormat format,
                       at::Tensor* stats) {
  at::Tensor y = empty_results(g.out_size(), q_x.options().dtype(out_dtype), format);
  if (y.numel() == 0) {
    if (stats != nullptr) *stats = stats_of_cpu(y);
    return y;
  }
  const Capability capability = daq_mm::cpu::capability();
  const bool bytes = uses_bytes(capability);
  GemmProblem problem;
  problem.scale = {x_step * w_step};
  if (bias.has_value() && out_dtype != at::kInt) problem.bias = to_floats(*bias);
  const int8_t* w = q_w.const_data_ptr<int8_t>();

  problem.zero_point = bytes ? zero_point : 0;
  SourceOptions source;
  source.zero_point = zero_point;
  if (uses_depthwise(g)) {
    std::vector<int64_t> tap_order(g.taps());
    std::iota(tap_order.begin(), tap_order.end(), 0);
    problem.depthwise = true;
    problem.phases.push_back(forward_phase(g, false));
    problem.weights = pack_depthwise(w, g.ci, tap_order, {0, g.taps()}, capability);
    problem.source = make_source(q_x, capability, source);
    multiply(problem, capability, y, stats);
    return y;
  }
  const int64_t step_channels = bytes ? 4 : 2;
  const bool merge = merges_width(g, step_channels);
  std::vector<int8_t> merged;
  WeightView view;
  view.groups = g.groups;
  view.lanes = g.co_per_group();
  if (merge) {
    merged = merged_weight(q_w, g);
    view.data = merged.data();
    view.depth = g.ci * g.kernel[2];
    view.taps = g.kernel[0] * g.kernel[1];
  } else {
    view.data = w;
    view.depth = g.ci_per_group();
    view.taps = g.taps();
  }
  const bool last = !merge && !q_w.is_contiguous();
  view.depth_stride = last ? 1 : view.taps;
  view.tap_stride = last ? view.depth : 1;
  view.lane_stride = view.depth * view.taps;
  view.group_stride = view.lanes * view.lane_stride;
  for (int64_t t = 0; t < view.taps; ++t) view.tap_order.push_back(t);

  problem.phases.push_back(forward_phase(g, merge));
  problem.weights = pack_weights(view, capability, problem.zero_point != 0);
  problem.group_channels = g.ci_per_group();
  source.merge_width = merge;
  source.pad_begin = g.pad_begin[2];
  source.pad_end = g.pad_end[2];
  source.row_bytes = row_bytes(problem.weights, g.groups, g.ci_per_group());
  problem.source = make_source(q_x, capability, source);
  multiply(problem, capability, y, stats);
  return y;
}

namespace {

at::Tensor forward(const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_w,
                   const at::Tensor& w_step, const std::optional<at::Tensor>& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups, at::ScalarType out_dtype) {
  const auto g =
      ConvGeometry::make(q_x.sizes(), q_w.sizes(), stride, padding, dilation, groups);
  check_channels_last(q_x, at::kByte, "q_x");
  check_contiguous(q_w, at::kChar, "q_w");
  check_contiguous(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_contiguous(w_step, at::kFloat, "w_step");
  check_size(w_step, {1}, "w_step");
  check_bias(bias, g.co);
  check_out_dtype(out_dtype, true);
  const float* qparams = x_qparams.const_data_ptr<float>();
  return forward_cpu(q_x, qparams[0], checked_zero_point(qparams[1]), q_w,
                     *w_step.const_data_ptr<float>(), bias, g, out_dtype,
                     channels_last_format(g.rank));
}

}  // namespace
}  // namespace daq_mm::cpu

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("forward", &daq_mm::cpu::forward); }
