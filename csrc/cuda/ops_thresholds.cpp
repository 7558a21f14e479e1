// Ops daq_mm::update_thresholds, thresholds_from_maxima and norm_backward_thresholds on CUDA: checks,
// allocation and launches. Whether the discriminator is due is decided on the device. Kernels:
// thresholds.cu, glue_thresholds.cu.

#include <torch/library.h>

#include "checks.h"
#include "cuda/glue.h"
#include "cuda/glue_operands.h"
#include "cuda/launches.h"
#include "cuda/op_tensors.h"
#include "cuda/products.h"

namespace daq_mm::cuda {

at::Tensor channel_sums_cuda(const at::Tensor& g) {
  at::Tensor sums = at::empty({g.size(1)}, g.options().dtype(at::kFloat));
  if (g.numel() == 0) return sums.zero_();
  const ImageView view(g);
  const at::Tensor space = workspace(channel_sums_workspace(view.image), g.device());
  channel_sums(view.image, space.mutable_data_ptr(), sums.mutable_data_ptr<float>(),
               current_stream());
  return sums;
}

namespace {

ThresholdState checked_state(at::Tensor& threshold, at::Tensor& tail_probability,
                             at::Tensor& iteration, int64_t entries, const at::Tensor& first) {
  check_state(threshold, at::kFloat, {entries}, first, "threshold");
  check_state(tail_probability, at::kFloat, {entries}, first, "tail_probability");
  check_state(iteration, at::kLong, {1}, first, "iteration");
  return {threshold.mutable_data_ptr<float>(), tail_probability.mutable_data_ptr<float>(),
          iteration.mutable_data_ptr<int64_t>()};
}

void check_interval(int64_t interval) {
  TORCH_CHECK_VALUE(interval >= 1, "interval=", interval, " must be at least 1");
}

ThresholdRules rules_of(bool mcs, double decay, double gain, bool cap, double gaussian_above) {
  return {mcs, static_cast<float>(decay), static_cast<float>(gain), cap,
          static_cast<float>(gaussian_above)};
}

at::Tensor update_thresholds_op(const at::Tensor& g, at::Tensor& threshold,
                                at::Tensor& tail_probability, at::Tensor& iteration, bool mcs,
                                double decay, double gain, bool cap, double gaussian_above,
                                int64_t interval) {
  check_float(g, "g");
  check_spatial_rank(g, "g");
  const auto state =
      checked_state(threshold, tail_probability, iteration, g.size(1) + 1, g);
  check_interval(interval);
  const DeviceGuard guard(g.device());
  if (g.numel() == 0) return threshold.clone();
  const ImageView view(g);
  const at::Tensor space = workspace(update_thresholds_workspace(view.image, mcs), g.device());
  at::Tensor used = at::empty(threshold.sizes(), threshold.options());
  update_thresholds(view.image, rules_of(mcs, decay, gain, cap, gaussian_above), interval, state,
                    space.mutable_data_ptr(), used.mutable_data_ptr<float>(), current_stream());
  return used;
}

at::Tensor thresholds_from_maxima_op(const at::Tensor& maximum, at::Tensor& threshold,
                                     const at::Tensor& tail_probability, at::Tensor& iteration,
                                     bool mcs, double decay, double gain, bool cap,
                                     double gaussian_above) {
  check_dtype(maximum, at::kFloat, "maximum");
  TORCH_CHECK_VALUE(maximum.dim() == 1 && maximum.size(0) >= 2, "maximum has size ",
                    maximum.sizes(), "; expected [C + 1]");
  at::Tensor tails = tail_probability;  // the same memory; read only
  const auto state = checked_state(threshold, tails, iteration, maximum.size(0), maximum);
  const DeviceGuard guard(maximum.device());
  const at::Tensor maxima = maximum.contiguous();
  at::Tensor used = at::empty(threshold.sizes(), threshold.options());
  move_thresholds(maxima.const_data_ptr<float>(), maximum.size(0) - 1,
                  rules_of(mcs, decay, gain, cap, gaussian_above), state,
                  used.mutable_data_ptr<float>(), current_stream());
  return used;
}

at::Tensor norm_backward_thresholds_op(
    const at::Tensor& g, const MaybeTensor& mask, const MaybeTensor& y, const MaybeTensor& grid,
    const at::Tensor& coefficients, at::Tensor& threshold, at::Tensor& tail_probability,
    at::Tensor& iteration, bool mcs, double decay, double gain, bool cap, double gaussian_above,
    int64_t interval) {
  const DeviceGuard guard(g.device());
  GradientOperands operands(g, mask, y, grid);
  const NormBackward a = operands.backward(coefficients, g.size(1));
  const auto state = checked_state(threshold, tail_probability, iteration, g.size(1) + 1, g);
  check_interval(interval);
  if (g.numel() == 0) return threshold.clone();
  const GlueSize size = size_of(g);
  const at::Tensor space = workspace(norm_backward_thresholds_workspace(size), g.device());
  at::Tensor used = at::empty(threshold.sizes(), threshold.options());
  norm_backward_thresholds(a, size, rules_of(mcs, decay, gain, cap, gaussian_above), interval,
                           state, space.mutable_data_ptr(), used.mutable_data_ptr<float>(),
                           current_stream());
  return used;
}

}  // namespace

DAQ_MM_CUDA_IMPL(m) {
  m.impl("update_thresholds", &update_thresholds_op);
  m.impl("thresholds_from_maxima", &thresholds_from_maxima_op);
  m.impl("norm_backward_thresholds", &norm_backward_thresholds_op);
}

}  // namespace daq_mm::cuda
