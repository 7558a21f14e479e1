// Op daq_mm::conv_forward_stats: a layer's forward pass from an input that is 8-bit already, and the
// statistics of its output as stored.
//
// q_x uint8 (N, Ci, *spatial) channels-last, w (Co, Ci / groups, *kernel) float of any layout; y in
// out_dtype, channels-last. The product is in forward.cpp.

#include <tuple>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor> conv_forward_stats(
    const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& w,
    const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, at::ScalarType out_dtype, bool stats) {
  const auto g = ConvGeometry::make(q_x.sizes(), w.sizes(), stride, padding, dilation, groups);
  check_channels_last(q_x, at::kByte, "q_x");
  check_contiguous(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_device(w, at::kCPU, "w");
  check_float(w, "w");
  check_bias(bias, g.co);
  check_out_dtype(out_dtype, false);
  const float* qparams = x_qparams.const_data_ptr<float>();
  const QuantizedW q_w = quantize_w_cpu(w);
  at::Tensor of_y = at::empty({0}, at::kDouble);
  at::Tensor y = forward_cpu(q_x, qparams[0], checked_zero_point(qparams[1]), q_w.q,
                             *q_w.step.const_data_ptr<float>(), bias, g, out_dtype,
                             channels_last_format(g.rank), stats ? &of_y : nullptr);
  return {std::move(y), std::move(of_y)};
}

}  // namespace
}  // namespace daq_mm::cpu

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("conv_forward_stats", &daq_mm::cpu::conv_forward_stats);
}
