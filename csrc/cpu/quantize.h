// Parts that the quantizers' files share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "checks.h"
#include "cpu/products.h"

namespace daq_mm::cpu {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// levels / threshold in float32, 0 where that is not a finite number.
float inverse_step(float threshold, float levels);

// Absolute maximum of a dense float tensor, NaN if it holds one, 0 if it is empty.
float absolute_maximum(const at::Tensor& dense);

// The grid of a quantized activation: q = round(clamp(v * inverse, -levels, levels)) + zero_point.
struct ActivationGrid {
  float threshold, levels;
  int32_t zero_point;
  float inverse() const { return inverse_step(threshold, levels); }
  float step() const { return threshold / levels; }
};

// From the extremes' bits, as SourceLoops::extremes finds them.
ActivationGrid activation_grid(uint32_t magnitude, uint32_t raw, bool allow_unsigned);

// Writes x on a grid that is known.
QuantizedX quantize_x_cpu(const at::Tensor& x, const ActivationGrid& grid);

// x_qparams' second value as the integer that it must be.
inline int32_t checked_zero_point(float zero_point) {
  TORCH_CHECK_VALUE(zero_point >= 0 && zero_point <= 255 && zero_point == std::floor(zero_point),
                    "x_qparams has zero point ", zero_point, "; expected an integer in 0..255");
  return static_cast<int32_t>(zero_point);
}

inline void check_seed(const std::optional<at::Tensor>& seed) {
  if (!seed.has_value()) return;
  check_dtype(*seed, at::kLong, "seed");
  TORCH_CHECK_VALUE(seed->numel() == 1, "seed has size ", seed->sizes(), "; expected [1]");
}

}  // namespace daq_mm::cpu
