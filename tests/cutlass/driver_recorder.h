// What the driver would be told of a tensor map: driver_recorder.cpp stands in for its two encoding
// functions and keeps their arguments, whoever calls them.
#pragma once

#include <cstdint>

#include "cuda/primitives/tensor_map.h"

struct EncodeArguments {
  int type = 0, rank = 0;
  const void* address = nullptr;
  uint64_t sizes[5] = {}, strides[4] = {};
  uint32_t steps[5] = {};
  int interleave = 0, swizzle = 0, fill = 0;
  // Walks alone ("im2col").
  int lower[3] = {}, upper[3] = {};
  uint32_t channels = 0, pixels = 0;
  // Matrices alone ("tiled").
  uint32_t box[5] = {};
};

// Of the latest call of either; who wants to know that there was one clears them before.
extern EncodeArguments last_walk, last_matrix;

// What make_tensor_map() of csrc/cuda/tensor_map.cpp, compiled as for a GPU, tells the driver.
EncodeArguments encoded_by_us(const daq_mm::cuda::WalkMapping& mapping);
EncodeArguments encoded_by_us(const daq_mm::cuda::MatrixMapping& mapping);
