// What the copy engine of compute capability 9.0 knows of a tensor in device memory: a tensor map,
// made on the host for one launch (no device work, so a CUDA graph captures it) and passed to the
// kernel by value, as a DAQ_GRID_CONSTANT parameter. Values are bytes.
//
// A copy brings a box of rows x span bytes to shared memory, rows one after another, their 16-byte
// chunks permuted as the tensor cores read them (swizzled_byte()). What lies outside reads zero.
#pragma once

#include <cstdint>

#include "cuda/conv_sizes.h"

namespace daq_mm::cuda {

// Rows of `columns` bytes, `columns` a multiple of 16. A copy starts at any (column, row).
struct MatrixMapping {
  const void* data = nullptr;  // a multiple of 16
  int64_t rows = 0;
  int64_t columns = 0;
  int box_rows = 0;   // at most 256
  int span = 0;       // bytes of a row that a copy brings: 64 or 128
};

// "im2col": pixels of channels-last images, walked w first, then h, d and image, within a box that
// has the same place in each image: from `lower` on, `step` apart, up to before size + upper. A
// copy starts at a pixel of the walk and brings the next `pixels`; each is read `offset` further.
struct WalkMapping {
  const void* data = nullptr;  // a multiple of 16
  int axes = 2;                // 2: the first of size, lower, upper, step and offset is not used
  int64_t channels = 0;        // a multiple of 16
  int64_t images = 0;
  int size[3] = {1, 1, 1};     // D, H, W
  int lower[3] = {0, 0, 0};
  int upper[3] = {0, 0, 0};
  int step[3] = {1, 1, 1};     // 1..8
  int most_offset[3] = {0, 0, 0};
  int pixels = 0;              // at most 1024
  int span = 0;                // bytes of a pixel that a copy brings: 64 or 128
};

// Why the engine cannot take it; null if it can.
const char* refusal(const MatrixMapping& mapping);
const char* refusal(const WalkMapping& mapping);

#ifdef DAQ_MM_EMULATED
struct TensorMap {
  bool is_walk = false;
  MatrixMapping matrix;
  WalkMapping walk;
};
#else
// CUtensorMap of the driver, whose header kernels need not know; aligned as CUDA 13's, which is
// more than CUDA 12's 64.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
#endif

// Raise RuntimeError with the refusal, or with what the driver says.
TensorMap make_tensor_map(const MatrixMapping& mapping);
TensorMap make_tensor_map(const WalkMapping& mapping);

// Where byte `byte` of a box lies, for a box that starts at a multiple of eight rows' bytes: bits 4
// and up are changed by the bits from 7 on, which in a row of 128 bytes count rows.
DAQ_BOTH inline int swizzled_byte(int byte, int span) {
  return byte ^ ((byte >> 7 & (span / 16 - 1)) << 4);
}

}  // namespace daq_mm::cuda
