// Stores a block of channels-last results into a contiguous (N, C, *spatial) tensor: the transpose
// at the end of forward and grad-input, while the block is still in cache. Called by
// gemm_driver.cpp.
#pragma once

#include <cstdint>

namespace daq_mm::cpu {

// block[p][lane] (room for 64 lanes), `row` values from a pixel to the next, `element` 2 or 4
// bytes, goes to out[n][first_channel + lane][s], where at[p] = n * plane + s.
void store_planes(const uint8_t* block, int64_t row, int64_t pixels, int64_t lanes,
                  int64_t element, const int64_t* at, uint8_t* out, int64_t first_channel,
                  int64_t channels, int64_t plane);

// A run of pixels that lie side by side in a plane.
void store_run_avx512(const uint8_t* from, int64_t row_bytes, int64_t pixels, int64_t lanes,
                      int64_t element, uint8_t* out, int64_t plane_bytes);

}  // namespace daq_mm::cpu
