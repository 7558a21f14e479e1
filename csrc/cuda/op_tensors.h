// Tensors as the launch functions take them, and the checks that the CUDA ops share.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/launches.h"
#include "cuda/op_checks.h"

namespace daq_mm::cuda {

inline FloatType float_type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return FloatType::float32;
    case at::kBFloat16:
      return FloatType::bfloat16;
    default:
      return FloatType::float16;  // check_float has let nothing else through
  }
}

inline FloatData float_data(const at::Tensor& t) {
  return {t.const_data_ptr(), t.numel(), float_type_of(t.scalar_type())};
}

// An activation or gradient, channels-last or contiguous; other layouts are copied once.
struct ImageView {
  at::Tensor tensor;
  FloatImage image;

  explicit ImageView(const at::Tensor& t) {
    const auto format = channels_last_format(t.dim() - 2);
    image.last = t.is_contiguous(format) || !t.is_contiguous();
    tensor = image.last ? t.contiguous(format) : t;
    image.values = float_data(tensor);
    image.n = t.size(0);
    image.c = t.size(1);
    image.spatial = 1;
    for (int64_t axis = 2; axis < t.dim(); ++axis) image.spatial *= t.size(axis);
  }
};

// A weight, channels-last or contiguous; other layouts are copied once.
struct WeightView {
  at::Tensor tensor;
  FloatWeight weight;

  explicit WeightView(const at::Tensor& t) {
    weight.last = is_channels_last(t);
    tensor = weight.last ? t : t.contiguous();
    weight.values = float_data(tensor);
    weight.co = t.size(0);
    weight.ci = t.size(1);
    weight.taps = 1;
    for (int64_t axis = 2; axis < t.dim(); ++axis) weight.taps *= t.size(axis);
  }
};

inline at::Tensor empty_channels_last(const at::Tensor& like, at::ScalarType dtype) {
  return empty_results(like.sizes(), like.options().dtype(dtype), channels_last_format(like.dim() - 2));
}

inline void check_same_device(const at::Tensor& t, const at::Tensor& first, const char* name) {
  check_device(t, first.device(), name);
}

inline void check_seed(const std::optional<at::Tensor>& seed, const at::Tensor& first) {
  if (!seed.has_value()) return;
  check_same_device(*seed, first, "seed");
  check_dtype(*seed, at::kLong, "seed");
  TORCH_CHECK_VALUE(seed->numel() == 1, "seed has size ", seed->sizes(), "; expected [1]");
}

// A gradient's thresholds: one for the tensor, or one for each channel.
inline void check_threshold(const at::Tensor& threshold, const at::Tensor& g) {
  check_same_device(threshold, g, "threshold");
  check_dtype(threshold, at::kFloat, "threshold");
  TORCH_CHECK_VALUE(threshold.dim() == 1 &&
                        (threshold.size(0) == 1 || threshold.size(0) == g.size(1)),
                    "threshold has size ", threshold.sizes(), "; expected [1] or [", g.size(1),
                    "]");
}

inline void check_dense_channels_last(const at::Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.is_contiguous(channels_last_format(t.dim() - 2)), name, " of size ",
                    t.sizes(), " has strides ", t.strides(), "; expected channels-last");
}

// A state vector that an op updates in place.
inline void check_state(const at::Tensor& t, at::ScalarType dtype, at::IntArrayRef size,
                        const at::Tensor& first, const char* name) {
  check_same_device(t, first, name);
  check_dtype(t, dtype, name);
  check_size(t, size, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, " has strides ", t.strides(),
                    "; expected contiguous");
}

}  // namespace daq_mm::cuda
