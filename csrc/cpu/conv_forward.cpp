// Op daq_mm::conv_forward: quantize x and w, multiply, dequantize; a layer's forward pass.
//
// x (N, Ci, *spatial) and w (Co, Ci / groups, *kernel) float32, bfloat16 or float16 of any layout;
// y in PyTorch's memory format for them; q_x uint8 channels-last and x_qparams float32 (2,) are
// what the backward pass needs. The products are in forward.cpp, the quantizers in quantize.cpp.

#include <tuple>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"

namespace daq_mm::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_forward(
    const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    bool allow_unsigned, at::ScalarType out_dtype) {
  const auto g = ConvGeometry::make(x.sizes(), w.sizes(), stride, padding, dilation, groups);
  check_device(x, at::kCPU, "x");
  check_device(w, at::kCPU, "w");
  check_float(x, "x");
  check_float(w, "w");
  check_bias(bias, g.co);
  check_out_dtype(out_dtype, false);
  const bool channels_last = is_channels_last(x) || is_channels_last(w);
  const auto format = channels_last ? channels_last_format(g.rank) : at::MemoryFormat::Contiguous;
  const QuantizedW q_w = quantize_w_cpu(w);
  QuantizedX q_x = quantize_x_cpu(x, allow_unsigned);
  at::Tensor y = forward_cpu(q_x.q, q_x.step, q_x.zero_point, q_w.q,
                             *q_w.step.const_data_ptr<float>(), bias, g, out_dtype, format);
  at::Tensor qparams = at::empty({2}, x.options().dtype(at::kFloat));
  float* values = qparams.data_ptr<float>();
  values[0] = q_x.step;
  values[1] = static_cast<float>(q_x.zero_point);
  return {std::move(y), std::move(q_x.q), std::move(qparams)};
}

}  // namespace
}  // namespace daq_mm::cpu

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("conv_forward", &daq_mm::cpu::conv_forward); }
