// float_loops.h with AVX2, and F16C, which every processor with AVX2 has.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/float_loops.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

namespace daq_mm::cpu {
namespace {

using Floats = __m256;
using Ints = __m256i;
constexpr int64_t kWidth = 8;

inline Floats load(const float* v) { return _mm256_loadu_ps(v); }
inline Floats set(float v) { return _mm256_set1_ps(v); }
inline Ints set_int(uint32_t v) { return _mm256_set1_epi32(static_cast<int32_t>(v)); }
inline Ints ramp() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints smaller(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
template <int n>
inline Ints shift(Ints v) {
  return _mm256_srli_epi32(v, n);
}
template <int n>
inline Ints fold(Ints v) {
  return _mm256_xor_si256(v, shift<n>(v));
}
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Floats clamp(Floats v, Floats low, Floats high) {  // NaN gives 0
  const __m256 number = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
  return _mm256_and_ps(_mm256_min_ps(_mm256_max_ps(v, low), high), number);
}
inline Ints nearest(Floats v) { return _mm256_cvtps_epi32(v); }
inline Ints downward(Floats v) { return _mm256_cvtps_epi32(_mm256_floor_ps(v)); }
inline void store_bytes(Ints v, int8_t* out) {
  // The low bytes of each 128-bit lane's words, then both lanes' four bytes together.
  const __m256i pick = _mm256_set1_epi32(0x0C080400);
  const __m256i bytes = _mm256_shuffle_epi8(v, pick);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes),
                                          _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), both);
}

void from_half(const uint16_t* v, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_avx2() { return kLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
