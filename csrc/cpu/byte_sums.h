// Sums of the columns of matrices of bytes: for daq_mm::byte_sums and daq_mm::window_sums.
//
// Bytes are added up in 16 bits for as many rows as fit, and those sums in 32: one pass at the rate
// of the memory, where adding bytes one by one in 32 bits or more is bound by the arithmetic.
#pragma once

#include <cstdint>

#include "checks.h"

namespace daq_mm::cpu {

constexpr int64_t kSumColumns = 4096;  // columns that one call sums: 8 KB in 16 bits

// Adds `rows` <= kMostSumRows rows of `count` <= kSumColumns bytes to sums (count,); row r starts at
// v + r * stride or, with `offsets`, at v + offsets[r].
void add_bytes(const int8_t* v, const int64_t* offsets, int64_t stride, int64_t rows, int64_t count,
               int32_t* sums);
void add_bytes(const uint8_t* v, const int64_t* offsets, int64_t stride, int64_t rows,
               int64_t count, int32_t* sums);

}  // namespace daq_mm::cpu
