// Ops daq_mm::quantize_x, quantize_w, quantize_w_folded and quantize_g on CUDA: checks, allocation
// and launches. Kernels: quantize.cu, quantize_w.cu.

#include <algorithm>
#include <tuple>

#include <torch/library.h>

#include "checks.h"
#include "cuda/launches.h"
#include "cuda/op_tensors.h"
#include "cuda/products.h"

namespace daq_mm::cuda {

QuantizedX quantize_x_cuda(const at::Tensor& x, bool allow_unsigned) {
  const ImageView view(x);
  at::Tensor q = empty_channels_last(x, at::kByte);
  at::Tensor qparams = at::empty({2}, x.options().dtype(at::kFloat));
  const at::Tensor extremes = workspace(kExtremes * sizeof(uint32_t), x.device());
  quantize_x(view.image, allow_unsigned, static_cast<uint32_t*>(extremes.mutable_data_ptr()),
             q.mutable_data_ptr<uint8_t>(), qparams.mutable_data_ptr<float>(), current_stream());
  return {q, qparams};
}

QuantizedW quantize_w_cuda(const at::Tensor& w) {
  const WeightView view(w);
  at::Tensor q = at::empty(w.sizes(), w.options().dtype(at::kChar));
  at::Tensor step = at::empty({1}, w.options().dtype(at::kFloat));
  const at::Tensor extremes = workspace(kExtremes * sizeof(uint32_t), w.device());
  quantize_w(view.weight, static_cast<uint32_t*>(extremes.mutable_data_ptr()),
             q.mutable_data_ptr<int8_t>(), step.mutable_data_ptr<float>(), current_stream());
  return {q, step};
}

QuantizedW quantize_w_folded_cuda(const at::Tensor& w, const at::Tensor& g_threshold,
                                  int64_t groups) {
  const WeightView view(w);
  const int64_t channels = w.size(1) * groups;
  at::Tensor q = at::empty(w.sizes(), w.options().dtype(at::kChar));
  at::Tensor step = at::empty({channels}, w.options().dtype(at::kFloat));
  const at::Tensor maxima = workspace(channels * sizeof(uint32_t), w.device());
  quantize_w_folded(view.weight, g_threshold.const_data_ptr<float>(), groups,
                    static_cast<uint32_t*>(maxima.mutable_data_ptr()),
                    q.mutable_data_ptr<int8_t>(), step.mutable_data_ptr<float>(),
                    current_stream());
  return {q, step};
}

at::Tensor quantize_g_cuda(const at::Tensor& g, const at::Tensor& threshold,
                           const std::optional<at::Tensor>& seed) {
  const ImageView view(g);
  at::Tensor q = empty_channels_last(g, at::kChar);
  quantize_g(view.image, threshold.const_data_ptr<float>(), threshold.numel(),
             seed.has_value() ? seed->const_data_ptr<int64_t>() : nullptr,
             q.mutable_data_ptr<int8_t>(), current_stream());
  return q;
}

namespace {

std::tuple<at::Tensor, at::Tensor> quantize_x_op(const at::Tensor& x, bool allow_unsigned) {
  check_float(x, "x");
  check_spatial_rank(x, "x");
  const DeviceGuard guard(x.device());
  auto quantized = quantize_x_cuda(x, allow_unsigned);
  return {quantized.q, quantized.qparams};
}

std::tuple<at::Tensor, at::Tensor> quantize_w_op(const at::Tensor& w) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  const DeviceGuard guard(w.device());
  auto quantized = quantize_w_cuda(w);
  return {quantized.q, quantized.step};
}

std::tuple<at::Tensor, at::Tensor> quantize_w_folded_op(const at::Tensor& w,
                                                        const at::Tensor& g_threshold,
                                                        int64_t groups, bool keep_format) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  check_same_device(g_threshold, w, "g_threshold");
  check_dtype(g_threshold, at::kFloat, "g_threshold");
  check_size(g_threshold, {w.size(0)}, "g_threshold");
  TORCH_CHECK_VALUE(groups >= 1 && w.size(0) % groups == 0, "groups=", groups,
                    " must be at least 1 and divide the ", w.size(0), " output channels");
  const DeviceGuard guard(w.device());
  auto quantized = quantize_w_folded_cuda(w, g_threshold.contiguous(), groups);
  if (keep_format && is_channels_last(w)) {
    quantized.q = quantized.q.contiguous(channels_last_format(w.dim() - 2));
  }
  return {quantized.q, quantized.step};
}

at::Tensor quantize_g_op(const at::Tensor& g, const at::Tensor& threshold,
                         const std::optional<at::Tensor>& seed) {
  check_float(g, "g");
  check_spatial_rank(g, "g");
  check_threshold(threshold, g);
  check_seed(seed, g);
  const DeviceGuard guard(g.device());
  return quantize_g_cuda(g, threshold.contiguous(), seed);
}

}  // namespace

DAQ_MM_CUDA_IMPL(m) {
  m.impl("quantize_x", &quantize_x_op);
  m.impl("quantize_w", &quantize_w_op);
  m.impl("quantize_w_folded", &quantize_w_folded_op);
  m.impl("quantize_g", &quantize_g_op);
}

}  // namespace daq_mm::cuda
