// From int32 sums to stored results, for AVX2 kernels; see finish_avx512.h, which does the same.
//
// Include this inside the region of the target pragma, after <immintrin.h>.
#pragma once

#include "cpu/gemm_tiles.h"

#ifndef DAQ_MM_INLINE
#define DAQ_MM_INLINE inline __attribute__((always_inline))
#endif

namespace daq_mm::cpu {
namespace {

template <OutKind kOut>
constexpr int64_t kElementSize = kOut == OutKind::kFloat || kOut == OutKind::kInt32 ? 4 : 2;

DAQ_MM_INLINE __m256 scaled(__m256i exact, const Finish& f, int64_t lane) {
  __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), _mm256_loadu_ps(f.scale + lane));
  if (f.bias != nullptr) y = _mm256_add_ps(y, _mm256_loadu_ps(f.bias + lane));
  return y;
}

// float32 to bfloat16, to nearest even, subnormals kept, NaN to 0x7fc0.
DAQ_MM_INLINE __m128i to_bfloat16(__m256 y) {
  const __m256i bits = _mm256_castps_si256(y);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  r = _mm256_srli_epi32(r, 16);
  const __m256 nan = _mm256_cmp_ps(y, y, _CMP_UNORD_Q);
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(nan));
  r = _mm256_packus_epi32(r, r);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(r, 0x08));
}

template <OutKind kOut>
DAQ_MM_INLINE void store_eight(__m256i sums, const Finish& f, int64_t lane, uint8_t* out) {
  const __m256i exact = _mm256_sub_epi32(
      sums, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(f.offset + lane)));
  if constexpr (kOut == OutKind::kInt32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 4 * lane), exact);
  } else {
    const __m256 y = scaled(exact, f, lane);
    if constexpr (kOut == OutKind::kFloat) {
      _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * lane), y);
    } else {
      __m128i narrow;
      if constexpr (kOut == OutKind::kHalf) {
        narrow = _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        narrow = to_bfloat16(y);
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * lane), narrow);
    }
  }
}

}  // namespace
}  // namespace daq_mm::cpu
