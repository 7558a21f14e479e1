// Op daq_mm::grad_input_reduce on CUDA: grad-input and, where its tiles leave for memory, what
// norm_act_reduce does with it (conv_reduce.h). Where the tiles cannot (splits of the contraction,
// depthwise, channels or addresses that are no multiple of 16 bytes) norm_act_reduce follows, in
// place: see conv_grad_input.cu.

#include <torch/library.h>

#include "cuda/glue_operands.h"
#include "cuda/products.h"

namespace daq_mm::cuda {

std::tuple<at::Tensor, at::Tensor> grad_input_reduce_cuda(
    const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step, const ConvGeometry& g,
    at::ScalarType out_dtype, const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
    const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd,
    const PlanChoice* choice) {
  const at::Tensor gz = empty_results(g.x_size(), q_g.options().dtype(out_dtype),
                                      channels_last_format(g.rank));
  GradientOperands operands(gz, mask, y, grid);
  NormActReduce reduce = operands.reduce(g2, mean, invstd);
  at::Tensor sums = at::empty({2, g.ci}, q_g.options().dtype(at::kDouble));
  reduce.sums = sums.mutable_data_ptr<double>();
  if (gz.numel() == 0) {
    sums.zero_();
  } else {
    grad_input_into(gz, q_g, q_w, step, g, &reduce, choice);
  }
  return {gz, sums};
}

namespace {

std::tuple<at::Tensor, at::Tensor> grad_input_reduce_op(
    const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step, at::IntArrayRef x_size,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    at::ScalarType out_dtype, const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
    const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd) {
  const auto g = checked_grad_input(q_g, q_w, step, x_size, stride, padding, dilation, groups);
  check_out_dtype(out_dtype, false);
  const DeviceGuard guard(q_g.device());
  return grad_input_reduce_cuda(q_g, q_w.contiguous(), step, g, out_dtype, g2, mask, y, grid, mean,
                                invstd);
}

}  // namespace
}  // namespace daq_mm::cuda

DAQ_MM_CUDA_IMPL(m) { m.impl("grad_input_reduce", &daq_mm::cuda::grad_input_reduce_op); }
