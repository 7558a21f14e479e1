// AVX512 part of transpose_bytes.h, for daq_mm::quantize_x, quantize_g and quantize_w.
//
// Blocks of 64 rows x 16 columns: register r holds 16 bytes of the rows r, 16 + r, 32 + r and 48 + r
// in its four lanes. Transposing 16 x 16 bytes within each lane leaves a column's 64 bytes in each
// register, in order.

#include "cpu/transpose_bytes.h"

#if defined(__x86_64__)

// GCC's own _mm512_undefined_epi32() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

namespace daq_mm::cpu {
namespace {

inline __mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : n <= 0 ? 0 : (__mmask64{1} << n) - 1;
}

// Register i of a block of 64 rows and 16 columns.
inline __m512i load_rows(const uint8_t* in, int64_t stride, int i) {
  const auto row = [&](int r) { return reinterpret_cast<const __m128i*>(in + r * stride); };
  __m512i v = _mm512_castsi128_si512(_mm_loadu_si128(row(i)));
  v = _mm512_inserti32x4(v, _mm_loadu_si128(row(16 + i)), 1);
  v = _mm512_inserti32x4(v, _mm_loadu_si128(row(32 + i)), 2);
  return _mm512_inserti32x4(v, _mm_loadu_si128(row(48 + i)), 3);
}

// The same of a smaller block, whose columns are those of the mask; nothing beyond is read.
inline __m512i load_some_rows(const uint8_t* in, int64_t stride, int i, int64_t rows,
                              __mmask16 columns) {
  const auto row = [&](int r) {
    return _mm_maskz_loadu_epi8(r < rows ? columns : 0, in + r * stride);
  };
  __m512i v = _mm512_castsi128_si512(row(i));
  v = _mm512_inserti32x4(v, row(16 + i), 1);
  v = _mm512_inserti32x4(v, row(32 + i), 2);
  return _mm512_inserti32x4(v, row(48 + i), 3);
}

// Four rounds, each interleaving register i with register i + 8.
inline void transpose_lanes(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 2
  for (int round = 0; round < 2; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm512_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm512_unpackhi_epi8(a[i], a[i + 8]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm512_unpacklo_epi8(b[i], b[i + 8]);
      a[2 * i + 1] = _mm512_unpackhi_epi8(b[i], b[i + 8]);
    }
  }
}

}  // namespace

void transpose_bytes_avx512(const uint8_t* in, int64_t in_stride, int64_t rows, int64_t columns,
                            uint8_t* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; row += 64) {
    const int64_t here = rows - row < 64 ? rows - row : 64;
    const __mmask64 wanted = first_bytes(here);
    for (int64_t column = 0; column < columns; column += 16) {
      const int64_t count = columns - column < 16 ? columns - column : 16;
      const uint8_t* from = in + row * in_stride + column;
      uint8_t* to = out + column * out_stride + row;
      __m512i a[16];
      if (here == 64 && count == 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) a[i] = load_rows(from, in_stride, i);
        transpose_lanes(a);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * out_stride, a[i]);
        continue;
      }
      const auto some = static_cast<__mmask16>(first_bytes(count));
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) a[i] = load_some_rows(from, in_stride, i, here, some);
      transpose_lanes(a);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i < count) _mm512_mask_storeu_epi8(to + i * out_stride, wanted, a[i]);
      }
    }
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
