// Ops daq_mm::byte_sums and window_sums on CUDA: checks, allocation and launches. Kernels:
// byte_sums.cu, window_sums.cu.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/dropped_mean.h"
#include "cuda/op_checks.h"

namespace daq_mm::cuda {
namespace {

at::Tensor byte_sums_op(const at::Tensor& q) {
  check_byte_matrix(q);
  const int64_t rows = q.size(0), channels = q.size(1);
  const DeviceGuard guard(q.device());
  at::Tensor sums = at::empty({channels}, q.options().dtype(at::kInt));
  if (channels == 0) return sums;
  int32_t* to = sums.mutable_data_ptr<int32_t>();
  if (q.scalar_type() == at::kChar) {
    byte_sums(q.const_data_ptr<int8_t>(), rows, channels, to, current_stream());
  } else {
    byte_sums(q.const_data_ptr<uint8_t>(), rows, channels, to, current_stream());
  }
  return sums;
}

at::Tensor window_sums_op(const at::Tensor& q_x, const at::Tensor& x_qparams,
                          at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation) {
  check_spatial_rank(q_x, "q_x");
  check_channels_last(q_x, q_x.device(), at::kByte, "q_x");
  check_contiguous(x_qparams, q_x.device(), at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  auto geometry = ConvGeometry::windows(q_x.sizes(), kernel, stride, padding, dilation);
  const std::vector<int64_t> size = geometry.windows_size();
  geometry.groups = geometry.co = geometry.ci;  // each channel for itself, as depthwise sizes may be
  const DeviceGuard guard(q_x.device());
  const auto options = q_x.options().dtype(at::kDouble).memory_format(
      at::MemoryFormat::Contiguous);
  if (q_x.numel() == 0) return at::zeros(size, options);
  const ConvSizes sizes = conv_sizes(geometry);
  at::Tensor sums = at::empty(size, options);
  const at::Tensor space = workspace(window_sums_workspace(sizes), q_x.device());
  window_sums(sizes, q_x.const_data_ptr<uint8_t>(), x_qparams.const_data_ptr<float>(),
              space.mutable_data_ptr(), sums.mutable_data_ptr<double>(), current_stream());
  return sums;
}

}  // namespace

DAQ_MM_CUDA_IMPL(m) {
  m.impl("byte_sums", &byte_sums_op);
  m.impl("window_sums", &window_sums_op);
}

}  // namespace daq_mm::cuda
