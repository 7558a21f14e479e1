// What the ops on a gradient share: its GradientTask from checked tensors (glue_backward.cpp,
// glue_grad_input.cpp).
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "checks.h"
#include "cpu/glue.h"
#include "cpu/glue_arrays.h"
#include "cpu/op_checks.h"

namespace daq_mm::cpu {

// A gradient with what masks and normalises it, checked, and where its arrays live.
struct Gradient {
  GradientTask task{};
  YKind kind = YKind::kNone;
  int dtype;
  int64_t width;

  Gradient(const at::Tensor& g, const MaybeTensor& mask, const MaybeTensor& y,
           const MaybeTensor& grid)
      : dtype(glue_dtype(g.scalar_type())), width(glue_width(g.size(1))) {
    check_activation(g, "g");
    task.channels = task.last_channel = g.size(1);
    task.g = g.const_data_ptr();
    if (mask.has_value()) {
      check_size(*mask, mask_size(g), "mask");
      check_contiguous(*mask, at::kByte, "mask");
      task.mask = mask->const_data_ptr<uint8_t>();
    }
    TORCH_CHECK_VALUE(y.has_value() || !grid.has_value(), "grid is given but y is None");
    if (!y.has_value()) return;
    check_alike(*y, g, grid.has_value() ? at::kByte : g.scalar_type(), "y");
    task.y = y->const_data_ptr();
    kind = grid.has_value() ? YKind::kCodes : YKind::kFloat;
    if (!grid.has_value()) return;
    check_dtype(*grid, at::kFloat, "grid");
    check_size(*grid, {2, task.channels}, "grid");
    task.low = hold((*grid)[0]);
    task.step = hold((*grid)[1]);
  }

  void set_coefficients(const at::Tensor& coefficients) {
    check_dtype(coefficients, at::kFloat, "coefficients");
    check_size(coefficients, {3, task.channels}, "coefficients");
    task.a = hold(coefficients[0]);
    task.b = hold(coefficients[1]);
    task.c = hold(coefficients[2]);
  }

  // For the sums; mean and invstd both or neither.
  void set_statistics(const MaybeTensor& g2, const MaybeTensor& mean, const MaybeTensor& invstd,
                      const at::Tensor& g) {
    check_mean_and_invstd(mean, invstd, task.channels);
    TORCH_CHECK_VALUE(kind != YKind::kNone || !mean.has_value(), "mean is given but y is None");
    if (g2.has_value()) {
      check_alike(*g2, g, g.scalar_type(), "g2");
      task.g2 = g2->const_data_ptr();
    }
    if (!mean.has_value()) {
      kind = YKind::kNone;
      return;
    }
    task.mean = hold(*mean);
    task.invstd = hold(*invstd);
  }

  const float* hold(const at::Tensor& values) {
    arrays_.push_back(padded_channels(values));
    return arrays_.back().data();
  }

 private:
  std::vector<std::vector<float>> arrays_;
};

// The sums of all parts, each glue_width(channels) sums of gz and then of gz * x_hat; (2, channels).
inline at::Tensor sums_of_parts(const std::vector<double>& partial, int64_t channels) {
  const int64_t width = glue_width(channels);
  at::Tensor sums = at::zeros({2, channels}, at::kDouble);
  double* total = sums.data_ptr<double>();
  for (size_t at = 0; at < partial.size(); at += 2 * width) {
    const double* of_part = partial.data() + at;
    for (int64_t c = 0; c < channels; ++c) {
      total[c] += of_part[c];
      total[channels + c] += of_part[width + c];
    }
  }
  return sums;
}

}  // namespace daq_mm::cpu
