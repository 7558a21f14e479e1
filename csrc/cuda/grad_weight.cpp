// Op daq_mm::grad_weight on CUDA: checks, plan, workspace, launch.

#include <torch/library.h>

#include "cuda/op_checks.h"
#include "cuda/products.h"
#include "cuda/tune.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {

at::Tensor grad_weight_cuda(const at::Tensor& q_x, const at::Tensor& x_qparams,
                            const at::Tensor& q_g, const at::Tensor& g_step,
                            const ConvGeometry& g, at::ScalarType out_dtype,
                            at::MemoryFormat format, const PlanChoice* choice) {
  at::Tensor dw = empty_results(g.w_size(), q_x.options().dtype(out_dtype), format);
  if (g.grad_weight_contraction() == 0 || dw.numel() == 0) return dw.zero_();
  GradWeightArguments a;
  a.q_x = q_x.const_data_ptr<uint8_t>();
  a.x_qparams = x_qparams.const_data_ptr<float>();
  a.q_g = q_g.const_data_ptr<int8_t>();
  a.g_step = g_step.const_data_ptr<float>();
  a.dw = dw.mutable_data_ptr();
  a.type = result_type(out_dtype);
  a.channels_last = format != at::MemoryFormat::Contiguous;
  const PlanKey key{Product::kGradWeight, conv_sizes(g), false,
                    may_use_wgmma(a.q_x) && may_use_wgmma(a.q_g), result_bytes(a.type)};
  const Stream stream = current_stream();
  run_product(key, choice, q_x.get_device(), stream, [&](const ConvPlan& plan) {
    const at::Tensor scratch = workspace(plan.workspace_bytes, q_x.device());
    grad_weight(a, key.sizes, plan, scratch.mutable_data_ptr(), stream);
  });
  return dw;
}

namespace {

at::Tensor grad_weight_op(const at::Tensor& q_x, const at::Tensor& x_qparams,
                          const at::Tensor& q_g, const at::Tensor& g_step,
                          at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                          at::ScalarType out_dtype, bool channels_last) {
  const at::Device device = q_x.device();
  check_dtype(q_x, at::kByte, "q_x");
  check_device(q_g, device, "q_g");
  check_dtype(q_g, at::kChar, "q_g");
  check_spatial_rank(q_x, "q_x");
  check_spatial_rank(q_g, "q_g");
  TORCH_CHECK_VALUE(groups >= 1, "groups=", groups, " must be at least 1");
  std::vector<int64_t> w_size{q_g.size(1), q_x.size(1) / groups};
  w_size.insert(w_size.end(), kernel_size.begin(), kernel_size.end());
  const auto g = ConvGeometry::make(q_x.sizes(), w_size, stride, padding, dilation, groups);
  check_size(q_g, g.out_size(), "q_g");
  check_device(x_qparams, device, "x_qparams");
  check_dtype(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  check_device(g_step, device, "g_step");
  check_dtype(g_step, at::kFloat, "g_step");
  check_size(g_step, {g.co}, "g_step");
  check_out_dtype(out_dtype, true);
  const DeviceGuard guard(device);
  // Other layouts are copied, as the CPU's op does.
  const auto last = channels_last_format(g.rank);
  return grad_weight_cuda(q_x.contiguous(last), x_qparams.contiguous(), q_g.contiguous(last),
                          g_step.contiguous(), g, out_dtype,
                          channels_last ? last : at::MemoryFormat::Contiguous);
}

}  // namespace
}  // namespace daq_mm::cuda

DAQ_MM_CUDA_IMPL(m) { m.impl("grad_weight", &daq_mm::cuda::grad_weight_op); }
