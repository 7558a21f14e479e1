// AVX512 part of store_planes.h: tiles of 16 pixels by 64 bytes of lanes, transposed in registers.
// Called by store_planes.cpp.

#include "cpu/store_planes.h"

#if defined(__x86_64__)

// GCC's own _mm512_undefined_epi32() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "cpu/transpose_avx512.h"

namespace daq_mm::cpu {
namespace {

// Words of a 4-byte lane, or of two 2-byte lanes.
DAQ_MM_INLINE void load_tile(const uint8_t* from, int64_t row_bytes, int64_t pixels,
                             __m512i (&tile)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    tile[i] = i < pixels ? _mm512_loadu_si512(from + i * row_bytes) : _mm512_setzero_si512();
  }
  transpose_words(tile);
}

}  // namespace

void store_run_avx512(const uint8_t* from, int64_t row_bytes, int64_t pixels, int64_t lanes,
                      int64_t element, uint8_t* out, int64_t plane_bytes) {
  const int64_t tile_lanes = 64 / element;
  alignas(64) int32_t words[16][16];
  for (int64_t lane = 0; lane < lanes; lane += tile_lanes) {
    const int64_t wanted = lanes - lane < tile_lanes ? lanes - lane : tile_lanes;
    for (int64_t p = 0; p < pixels; p += 16) {
      const int64_t count = pixels - p < 16 ? pixels - p : 16;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
      __m512i tile[16];
      load_tile(from + p * row_bytes + lane * element, row_bytes, count, tile);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(words[i], tile[i]);
      uint8_t* to = out + lane * plane_bytes + p * element;
      if (element == 4) {
        for (int64_t i = 0; i < wanted; ++i, to += plane_bytes) {
          _mm512_mask_storeu_epi32(to, mask, _mm512_load_si512(words[i]));
        }
      } else {
        for (int64_t i = 0; i < wanted; ++i, to += plane_bytes) {
          const __m512i pair = _mm512_load_si512(words[i / 2]);
          const __m512i one = i % 2 == 0 ? pair : _mm512_srli_epi32(pair, 16);
          _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(one));
        }
      }
    }
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
