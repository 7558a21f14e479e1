// Argument checks that every backend shares. Messages name the argument, what was expected, and
// what came; TypeError for dtypes, ValueError for sizes, layouts and devices.
#pragma once

#include <cstdint>
#include <limits>

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/Exception.h>

namespace daq_mm {

inline at::MemoryFormat channels_last_format(int64_t rank) {
  return rank == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

inline void check_float(const at::Tensor& t, const char* name) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name,
                   " has dtype ", type, "; allowed: float32, bfloat16, float16");
}

inline void check_dtype(const at::Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, " has dtype ", t.scalar_type(), "; expected ",
                   dtype);
}

inline void check_size(const at::Tensor& t, at::IntArrayRef size, const char* name) {
  TORCH_CHECK_VALUE(t.sizes() == size, name, " has size ", t.sizes(), "; expected ", size);
}

inline void check_device(const at::Tensor& t, const at::Device& device, const char* name) {
  TORCH_CHECK_VALUE(t.device() == device, name, " is on ", t.device(), "; expected ", device);
}

inline void check_spatial_rank(const at::Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 4 || t.dim() == 5, name, " has ", t.dim(),
                    " axes; expected (N, C, H, W) or (N, C, D, H, W)");
}

// int32 holds the sum of so many bytes, whatever they are.
constexpr int64_t kMostSumRows = std::numeric_limits<int32_t>::max() / 255;

// A matrix of int8 or uint8 whose columns an int32 each can sum.
inline void check_byte_matrix(const at::Tensor& q) {
  TORCH_CHECK_TYPE(q.scalar_type() == at::kChar || q.scalar_type() == at::kByte,
                   "q has dtype ", q.scalar_type(), "; expected int8 or uint8");
  TORCH_CHECK_VALUE(q.dim() == 2 && q.is_contiguous(), "q of size ", q.sizes(), " has strides ",
                    q.strides(), "; expected a contiguous matrix");
  TORCH_CHECK_VALUE(q.size(0) <= kMostSumRows, "q has ", q.size(0),
                    " rows; int32 holds the sums of at most ", kMostSumRows);
}

// PyTorch's convolution rule: channels-last if x or w is so and is not plain contiguous as well.
inline bool is_channels_last(const at::Tensor& t) {
  return t.is_contiguous(channels_last_format(t.dim() - 2)) && !t.is_contiguous();
}

}  // namespace daq_mm
