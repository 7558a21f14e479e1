// Tensors of the glue ops, checked, as their launch functions take them: ops_glue.cpp,
// grad_input_reduce.cpp.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"
#include "cuda/glue.h"
#include "cuda/op_tensors.h"

namespace daq_mm::cuda {

using MaybeTensor = std::optional<at::Tensor>;

// An activation or gradient that the glue reads in order.
inline void check_activation(const at::Tensor& t, const char* name) {
  check_float(t, name);
  check_spatial_rank(t, name);
  check_dense_channels_last(t, name);
}

// A tensor of the size and layout of another.
inline void check_alike(const at::Tensor& t, const at::Tensor& like, at::ScalarType dtype,
                        const char* name) {
  check_same_device(t, like, name);
  check_dtype(t, dtype, name);
  check_size(t, like.sizes(), name);
  check_dense_channels_last(t, name);
}

inline std::vector<int64_t> mask_size(const at::Tensor& t) {
  std::vector<int64_t> size = t.sizes().vec();
  size.erase(size.begin() + 1);
  size.push_back((t.size(1) + 7) / 8);
  return size;
}

inline GlueSize size_of(const at::Tensor& t) {
  int64_t rows = t.size(0);
  for (int64_t axis = 2; axis < t.dim(); ++axis) rows *= t.size(axis);
  return {rows, t.size(1), float_type_of(t.scalar_type())};
}

// Vectors with an entry for each channel, contiguous for as long as this lives.
class ChannelVectors {
 public:
  explicit ChannelVectors(const at::Tensor& like) : like_(like) {}

  const at::Tensor& hold(const at::Tensor& t, at::ScalarType dtype, at::IntArrayRef size,
                         const char* name) {
    check_same_device(t, like_, name);
    check_dtype(t, dtype, name);
    check_size(t, size, name);
    held_.push_back(t.contiguous());
    return held_.back();
  }
  const float* floats(const MaybeTensor& t, at::IntArrayRef size, const char* name) {
    return t.has_value() ? hold(*t, at::kFloat, size, name).const_data_ptr<float>() : nullptr;
  }
  // Of any float type.
  FloatData any(const MaybeTensor& t, int64_t channels, const char* name) {
    if (!t.has_value()) return {};
    check_float(*t, name);
    return float_data(hold(*t, t->scalar_type(), {channels}, name));
  }

 private:
  const at::Tensor& like_;
  std::vector<at::Tensor> held_;
};

inline void check_mean_and_invstd(const MaybeTensor& mean, const MaybeTensor& invstd) {
  TORCH_CHECK_VALUE(mean.has_value() == invstd.has_value(),
                    "mean and invstd must both be given or both be None");
}

inline at::Tensor nothing(const at::Tensor& like, at::ScalarType dtype) {
  return at::empty({0}, at::TensorOptions().dtype(dtype).device(like.device()));
}

// The operands that the backward ops share.
struct GradientOperands {
  const at::Tensor& gradient;
  ChannelVectors vectors;
  const void* g;
  const uint8_t* mask = nullptr;
  bool has_y;
  const void* y = nullptr;
  const float* grid = nullptr;

  GradientOperands(const at::Tensor& gradient_, const MaybeTensor& mask_, const MaybeTensor& y_,
                   const MaybeTensor& grid_)
      : gradient(gradient_), vectors(gradient_), has_y(y_.has_value()) {
    check_activation(gradient, "g");
    g = gradient.const_data_ptr();
    if (mask_.has_value()) {
      check_same_device(*mask_, gradient, "mask");
      check_size(*mask_, mask_size(gradient), "mask");
      check_dtype(*mask_, at::kByte, "mask");
      TORCH_CHECK_VALUE(mask_->is_contiguous(), "mask has strides ", mask_->strides(),
                        "; expected contiguous");
      mask = mask_->const_data_ptr<uint8_t>();
    }
    TORCH_CHECK_VALUE(has_y || !grid_.has_value(), "grid is given but y is None");
    if (!has_y) return;
    check_alike(*y_, gradient, grid_.has_value() ? at::kByte : gradient.scalar_type(), "y");
    y = y_->const_data_ptr();
    grid = vectors.floats(grid_, {2, gradient.size(1)}, "grid");
  }

  // Of norm_act_reduce, but for its results.
  NormActReduce reduce(const MaybeTensor& g2, const MaybeTensor& mean, const MaybeTensor& invstd) {
    check_mean_and_invstd(mean, invstd);
    TORCH_CHECK_VALUE(has_y || !mean.has_value(), "mean is given but y is None");
    if (g2.has_value()) check_alike(*g2, gradient, gradient.scalar_type(), "g2");
    NormActReduce a{};
    a.g = g;
    a.g2 = g2.has_value() ? g2->const_data_ptr() : nullptr;
    a.mask = mask;
    a.y = mean.has_value() ? y : nullptr;
    a.grid = mean.has_value() ? grid : nullptr;
    a.mean = vectors.floats(mean, {gradient.size(1)}, "mean");
    a.invstd = vectors.floats(invstd, {gradient.size(1)}, "invstd");
    return a;
  }

  NormBackward backward(const at::Tensor& coefficients, int64_t channels) {
    return {g, mask, y, grid, vectors.floats(coefficients, {3, channels}, "coefficients")};
  }
};

}  // namespace daq_mm::cuda
