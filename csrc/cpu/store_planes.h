// Stores a block of channels-last results into a contiguous (N, C, *spatial) tensor: the transpose
// at the end of forward and grad-input, while the block is still in cache. Called by
// gemm_driver.cpp and depthwise_driver.cpp.
#pragma once

#include <cstdint>

namespace daq_mm::cpu {

// block[p][lane], `row` values from a pixel to the next, `element` 2 or 4 bytes, goes to
// out[n][first_channel + lane][s], where at[p] = n * plane + s.
void store_planes(const uint8_t* block, int64_t row, int64_t pixels, int64_t lanes,
                  int64_t element, const int64_t* at, uint8_t* out, int64_t first_channel,
                  int64_t channels, int64_t plane);

}  // namespace daq_mm::cpu
