// Op daq_mm::grad_input on CUDA: checks, plan, workspace, launch.

#include <torch/library.h>

#include "cuda/op_checks.h"
#include "cuda/products.h"
#include "cuda/tune.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {

void grad_input_into(const at::Tensor& dx, const at::Tensor& q_g, const at::Tensor& q_w,
                     const at::Tensor& step, const ConvGeometry& g, const NormActReduce* reduce,
                     const PlanChoice* choice) {
  GradInputArguments a;
  a.q_g = q_g.const_data_ptr<int8_t>();
  a.q_w = q_w.const_data_ptr<int8_t>();
  a.step = step.const_data_ptr<float>();
  a.step_by_channel = step.numel() != 1;
  a.dx = dx.mutable_data_ptr();
  a.type = result_type(dx.scalar_type());
  a.reduce = reduce;
  const PlanKey key{Product::kGradInput, conv_sizes(g), reduce != nullptr, may_use_wgmma(a.q_g),
                    result_bytes(a.type)};
  const Stream stream = current_stream();
  run_product(key, choice, q_g.get_device(), stream, [&](const ConvPlan& plan) {
    const at::Tensor scratch = workspace(plan.workspace_bytes, q_g.device());
    grad_input(a, key.sizes, plan, scratch.mutable_data_ptr(), stream);
  });
}

at::Tensor grad_input_cuda(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                           const ConvGeometry& g, at::ScalarType out_dtype,
                           at::MemoryFormat format, const PlanChoice* choice) {
  const at::Tensor dx = empty_results(g.x_size(), q_g.options().dtype(out_dtype),
                                      channels_last_format(g.rank));
  if (dx.numel() > 0) grad_input_into(dx, q_g, q_w, step, g, nullptr, choice);
  return dx.contiguous(format);
}

ConvGeometry checked_grad_input(const at::Tensor& q_g, const at::Tensor& q_w,
                                const at::Tensor& step, at::IntArrayRef x_size,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, int64_t groups) {
  const auto g = ConvGeometry::make(x_size, q_w.sizes(), stride, padding, dilation, groups);
  const at::Device device = q_g.device();
  check_size(q_g, g.out_size(), "q_g");
  check_channels_last(q_g, device, at::kChar, "q_g");
  check_device(q_w, device, "q_w");
  check_dtype(q_w, at::kChar, "q_w");
  // The two layouts that the CPU's op takes; the callers copy the second one.
  TORCH_CHECK_VALUE(q_w.is_contiguous() || q_w.is_contiguous(channels_last_format(g.rank)),
                    "q_w of size ", q_w.sizes(), " has strides ", q_w.strides(),
                    "; expected contiguous or channels-last");
  check_contiguous(step, device, at::kFloat, "step");
  TORCH_CHECK_VALUE(step.dim() == 1 && (step.size(0) == 1 || step.size(0) == g.ci),
                    "step has size ", step.sizes(), "; expected (", g.ci, ",) or (1,)");
  return g;
}

namespace {

at::Tensor grad_input_op(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                         at::IntArrayRef x_size, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation, int64_t groups, at::ScalarType out_dtype) {
  const auto g = checked_grad_input(q_g, q_w, step, x_size, stride, padding, dilation, groups);
  check_out_dtype(out_dtype, true);
  const DeviceGuard guard(q_g.device());
  return grad_input_cuda(q_g, q_w.contiguous(), step, g, out_dtype, channels_last_format(g.rank));
}

}  // namespace
}  // namespace daq_mm::cuda

DAQ_MM_CUDA_IMPL(m) { m.impl("grad_input", &daq_mm::cuda::grad_input_op); }
