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

inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

inline Floats load(const float* v, Whole) { return _mm256_loadu_ps(v); }
inline Floats load(const uint16_t* v, Whole) {
  const __m128i bfloat16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat16), 16));
}
template <typename T>
inline Floats load(const T* v, int64_t n) {
  T some[kWidth] = {};
  for (int64_t i = 0; i < kWidth && i < n; ++i) some[i] = v[i];
  return load(some, Whole{});
}
inline Floats set(float v) { return _mm256_set1_ps(v); }
inline Ints set_int(uint32_t v) { return _mm256_set1_epi32(static_cast<int32_t>(v)); }
inline Ints ramp() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints as_ints(Floats v) { return _mm256_castps_si256(v); }
inline Ints larger(Ints a, Ints b) { return _mm256_max_epu32(a, b); }
inline Ints larger_signed(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline uint32_t largest(Ints v) {
  uint32_t lanes[kWidth], most = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), v);
  for (uint32_t lane : lanes) most = larger(most, lane);
  return most;
}
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
// Four vectors' bytes in order: packing works within 128-bit lanes, which then change places.
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int8_t* out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i lanes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  __m256i bytes = _mm256_permutevar8x32_epi32(lanes, order);
  if (flip) bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
}
inline void store_some_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int64_t n, int8_t* out) {
  int8_t some[4 * kWidth];
  store_bytes(a, b, c, d, flip, some);
  for (int64_t i = 0; i < n; ++i) out[i] = some[i];
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
