// Checks and small conversions that the CPU ops forward, grad_input and conv_forward share.
#pragma once

#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"

namespace daq_mm::cpu {

inline void check_contiguous(const at::Tensor& t, at::ScalarType dtype, const char* name) {
  check_device(t, at::kCPU, name);
  check_dtype(t, dtype, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, " of size ", t.sizes(), " has strides ", t.strides(),
                    "; expected contiguous");
}

inline void check_channels_last(const at::Tensor& t, at::ScalarType dtype, const char* name) {
  check_device(t, at::kCPU, name);
  check_dtype(t, dtype, name);
  TORCH_CHECK_VALUE(t.is_contiguous(channels_last_format(t.dim() - 2)), name, " of size ",
                    t.sizes(), " has strides ", t.strides(), "; expected channels-last");
}

// 8-bit weights of grad-input, in either order.
inline void check_weight(const at::Tensor& t, const char* name) {
  check_device(t, at::kCPU, name);
  check_dtype(t, at::kChar, name);
  TORCH_CHECK_VALUE(t.is_contiguous() || t.is_contiguous(channels_last_format(t.dim() - 2)), name,
                    " of size ", t.sizes(), " has strides ", t.strides(),
                    "; expected contiguous or channels-last");
}

inline void check_bias(const std::optional<at::Tensor>& bias, int64_t channels) {
  if (!bias.has_value()) return;
  check_device(*bias, at::kCPU, "bias");
  check_float(*bias, "bias");
  check_size(*bias, {channels}, "bias");
}

inline void check_out_dtype(at::ScalarType type, bool allow_int32) {
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf ||
                       (allow_int32 && type == at::kInt),
                   "out_dtype is ", type, "; allowed: float32, bfloat16, float16",
                   allow_int32 ? ", int32" : "");
}

// An unwritten tensor with the strides that .contiguous(format) gives a contiguous one: where both
// formats fit (one channel, or one position) those stay plain contiguous.
inline at::Tensor empty_results(at::IntArrayRef size, const at::TensorOptions& options,
                                at::MemoryFormat format) {
  const at::Tensor plain = at::empty(size, options.device(at::kMeta));
  const bool fits_both = plain.is_contiguous(format);
  return at::empty(size, options.memory_format(fits_both ? at::MemoryFormat::Contiguous : format));
}

// The values of a float tensor of one axis, of any stride.
inline std::vector<float> to_floats(const at::Tensor& t) {
  const at::Tensor f = t.detach().to(at::kFloat).contiguous();
  return {f.const_data_ptr<float>(), f.const_data_ptr<float>() + f.numel()};
}

}  // namespace daq_mm::cpu
