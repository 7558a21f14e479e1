// Parts of daq_mm::grad_weight that its files share: where results go and the depthwise kernel.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>

#include "conv_geometry.h"

namespace daq_mm::cpu {

// How exact integer sums become dW: float(sum) * scale[co], or the bare sum for int32.
struct GradWeightOutput {
  void* data;
  at::ScalarType dtype;
  int64_t co_stride;   // in values
  int64_t ci_stride;
  int64_t tap_stride;
  const float* scale;  // (Co,): x_step * g_step[co]

  static GradWeightOutput make(const at::Tensor& dw, at::MemoryFormat format,
                               const ConvGeometry& geometry, const float* scale);

  // Values of one row co: count input channels from ci on, at one tap.
  template <typename sum_t>
  void store(int64_t co, int64_t ci, int64_t tap, int64_t count, const sum_t* sums) const;
};

// acc: float32 products of a depthwise convolution, one multiplier.
void grad_weight_depthwise(const uint8_t* q_x, int32_t zero_point, const int8_t* q_g,
                           const ConvGeometry& geometry, const GradWeightOutput& output);

}  // namespace daq_mm::cpu
