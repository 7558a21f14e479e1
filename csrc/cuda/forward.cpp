// Op daq_mm::forward on CUDA: checks, plan, workspace, launch. The zero point is read by the
// kernels: one that is no integer in 0..255 makes float results NaN, where the CPU raises.

#include <torch/library.h>

#include "cuda/op_checks.h"
#include "cuda/products.h"
#include "cuda/tune.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {

at::Tensor forward_cuda(const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_w,
                        const at::Tensor& w_step, const std::optional<at::Tensor>& bias,
                        const ConvGeometry& g, at::ScalarType out_dtype, at::MemoryFormat format,
                        const std::optional<at::Tensor>& statistics, const PlanChoice* choice) {
  at::Tensor y = empty_results(g.out_size(), q_x.options().dtype(out_dtype),
                               channels_last_format(g.rank));
  if (y.numel() == 0) {
    if (statistics.has_value()) at::Tensor(*statistics).zero_();
    return y.contiguous(format);
  }
  at::Tensor bias_values;
  if (bias.has_value() && out_dtype != at::kInt) {
    bias_values = bias->detach().to(at::kFloat).contiguous();
  }
  ForwardArguments a;
  a.q_x = q_x.const_data_ptr<uint8_t>();
  a.x_qparams = x_qparams.const_data_ptr<float>();
  a.q_w = q_w.const_data_ptr<int8_t>();
  a.w_step = w_step.const_data_ptr<float>();
  a.bias = bias_values.defined() ? bias_values.const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr();
  a.type = result_type(out_dtype);
  a.statistics = statistics.has_value() ? statistics->mutable_data_ptr<double>() : nullptr;
  const PlanKey key{Product::kForward, conv_sizes(g), statistics.has_value(), may_use_wgmma(a.q_x),
                    result_bytes(a.type)};
  const Stream stream = current_stream();
  run_product(key, choice, q_x.get_device(), stream, [&](const ConvPlan& plan) {
    const at::Tensor scratch = workspace(plan.workspace_bytes, q_x.device());
    forward(a, key.sizes, plan, scratch.mutable_data_ptr(), stream);
  });
  return y.contiguous(format);
}

namespace {

at::Tensor forward_op(const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_w,
                      const at::Tensor& w_step, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                      int64_t groups, at::ScalarType out_dtype) {
  const auto g =
      ConvGeometry::make(q_x.sizes(), q_w.sizes(), stride, padding, dilation, groups);
  const at::Device device = q_x.device();
  check_channels_last(q_x, device, at::kByte, "q_x");
  check_contiguous(q_w, device, at::kChar, "q_w");
  check_contiguous(x_qparams, device, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_contiguous(w_step, device, at::kFloat, "w_step");
  check_size(w_step, {1}, "w_step");
  check_bias(bias, device, g.co);
  check_out_dtype(out_dtype, true);
  const DeviceGuard guard(device);
  return forward_cuda(q_x, x_qparams, q_w, w_step, bias, g, out_dtype,
                      channels_last_format(g.rank));
}

}  // namespace
}  // namespace daq_mm::cuda

DAQ_MM_CUDA_IMPL(m) { m.impl("forward", &daq_mm::cuda::forward_op); }
