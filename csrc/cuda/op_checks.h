// Checks and small conversions that the CUDA ops share. They look at sizes, types and places, never
// at values, which would have to wait for the device.
#pragma once

#include <algorithm>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"
#include "cuda/conv_kernels.h"
#include "cuda/device.h"
#include "conv_geometry.h"

namespace daq_mm::cuda {

inline void check_contiguous(const at::Tensor& t, const at::Device& device, at::ScalarType dtype,
                             const char* name) {
  check_device(t, device, name);
  check_dtype(t, dtype, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, " of size ", t.sizes(), " has strides ", t.strides(),
                    "; expected contiguous");
}

inline void check_channels_last(const at::Tensor& t, const at::Device& device,
                                at::ScalarType dtype, const char* name) {
  check_device(t, device, name);
  check_dtype(t, dtype, name);
  check_spatial_rank(t, name);
  TORCH_CHECK_VALUE(t.is_contiguous(channels_last_format(t.dim() - 2)), name, " of size ",
                    t.sizes(), " has strides ", t.strides(), "; expected channels-last");
}

inline void check_bias(const std::optional<at::Tensor>& bias, const at::Device& device,
                       int64_t channels) {
  if (!bias.has_value()) return;
  check_device(*bias, device, "bias");
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

inline ResultType result_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16: return ResultType::kBFloat16;
    case at::kHalf: return ResultType::kFloat16;
    case at::kInt: return ResultType::kInt32;
    default: return ResultType::kFloat32;
  }
}

inline ConvSizes conv_sizes(const ConvGeometry& g) {
  ConvSizes s;
  s.n = g.n;
  s.ci = g.ci;
  s.co = g.co;
  s.groups = g.groups;
  // Coordinates within an image, channels and contractions over taps are 32-bit in kernels; what
  // counts images or values is not.
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostTerms = 1 << 24;  // whose sum of weights is an int32
  const auto packed = [](int64_t rows, int64_t length) { return rows * (length + 64); };
  const int64_t weights = std::max(packed(g.co_per_group(), g.forward_contraction()),
                                   packed(g.ci_per_group(), g.grad_input_contraction()));
  TORCH_CHECK_VALUE(g.n < kMost && g.ci < kMost && g.co < kMost && g.in_positions() < kMost &&
                        g.out_positions() < kMost && weights < kMost &&
                        g.forward_contraction() < kMostTerms,
                    g, " is too large for the CUDA kernels: batch, channels, positions of an image "
                    "and values of a group's weight must stay below 2**30, values an output channel "
                    "below 2**24");
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(g.in[a] + g.pad_begin[a] + g.pad_end[a] < kMost && g.stride[a] < kMost &&
                          g.dilation[a] * g.kernel[a] < kMost,
                      g, " is too large for the CUDA kernels: a padded axis must stay below 2**30");
    s.in[a] = static_cast<int>(g.in[a]);
    s.out[a] = static_cast<int>(g.out[a]);
    s.kernel[a] = static_cast<int>(g.kernel[a]);
    s.stride[a] = static_cast<int>(g.stride[a]);
    s.dilation[a] = static_cast<int>(g.dilation[a]);
    s.pad[a] = static_cast<int>(g.pad_begin[a]);
  }
  return s;
}

// Scratch memory that may be freed after the launches: the allocator keeps the stream's order.
inline at::Tensor workspace(int64_t bytes, const at::Device& device) {
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
}

}  // namespace daq_mm::cuda
