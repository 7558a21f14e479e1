// Sums down a column of a matrix of bytes: kVector bytes a thread in one access, added to as many
// int32 by one instruction each.
#pragma once

#include "cuda/channel_columns.h"

namespace daq_mm::cuda {

// Adds the bytes i.. of `q` to `sums`; width is 1 or kVector.
template <typename T, int width>
DAQ_DEVICE void add_bytes(const Global<const T>& q, int64_t i, int32_t (&sums)[width]) {
  if constexpr (width == 1) {
    sums[0] += q.load(i);
  } else {
    const Bytes8 eight = q.template load_as<Bytes8>(i);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const uint32_t word = eight.word[k / 4], only = 1u << (8 * (k % 4));
      if constexpr (std::is_signed_v<T>) {
        sums[k] = dot_product(word, only, sums[k]);
      } else {
        sums[k] += static_cast<int32_t>(word >> (8 * (k % 4)) & 0xffu);
      }
    }
  }
}

// Whether columns of kVector bytes can be read from rows of so many.
inline bool byte_vectors(const void* data, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(data) % kVector == 0 && row_bytes % kVector == 0;
}

}  // namespace daq_mm::cuda
