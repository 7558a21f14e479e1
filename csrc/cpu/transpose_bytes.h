// Transpose of a block of bytes, for quantizers whose input lies channels-first and whose output
// lies channels-last.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/capability.h"

namespace daq_mm::cpu {

#if defined(__SSE2__)
// 16 x 16: four rounds, each interleaving row i with row i + 8.
inline void transpose_16x16(const uint8_t* in, int64_t in_stride, uint8_t* out,
                            int64_t out_stride) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * in_stride));
  }
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
      a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
    }
  }
  for (int i = 0; i < 16; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_stride), a[i]);
  }
}
#endif

// transpose_bytes with AVX512: 64 rows together, so that whole cache lines are written.
void transpose_bytes_avx512(const uint8_t* in, int64_t in_stride, int64_t rows, int64_t columns,
                            uint8_t* out, int64_t out_stride);

// out[j * out_stride + i] = in[i * in_stride + j] for i < rows, j < columns.
inline void transpose_bytes(const uint8_t* in, int64_t in_stride, int64_t rows, int64_t columns,
                            uint8_t* out, int64_t out_stride) {
#if defined(__x86_64__)
  if (capability() == Capability::kAVX512VNNI) {
    return transpose_bytes_avx512(in, in_stride, rows, columns, out, out_stride);
  }
#endif
  int64_t done_rows = 0, done_columns = 0;
#if defined(__SSE2__)
  done_rows = rows / 16 * 16;
  done_columns = columns / 16 * 16;
  for (int64_t j = 0; j < done_columns; j += 16) {
    for (int64_t i = 0; i < done_rows; i += 16) {
      transpose_16x16(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
    }
  }
#endif
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t first = j < done_columns ? done_rows : 0;
    for (int64_t i = first; i < rows; ++i) out[j * out_stride + i] = in[i * in_stride + j];
  }
}

}  // namespace daq_mm::cpu
