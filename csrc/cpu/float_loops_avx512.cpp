// float_loops.h with AVX512.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/float_loops.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")

namespace daq_mm::cpu {
namespace {

using Floats = __m512;
using Ints = __m512i;
constexpr int64_t kWidth = 16;

inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

inline __mmask16 first(int64_t n) {
  return static_cast<__mmask16>(n >= kWidth ? 0xFFFF : n <= 0 ? 0 : (1 << n) - 1);
}
inline Floats load(const float* v, Whole) { return _mm512_loadu_ps(v); }
inline Floats load(const float* v, int64_t n) { return _mm512_maskz_loadu_ps(first(n), v); }
inline Floats widen(__m256i bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}
inline Floats load(const uint16_t* v, Whole) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v)));
}
inline Floats load(const uint16_t* v, int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), v));
}
inline Floats set(float v) { return _mm512_set1_ps(v); }
inline Ints set_int(uint32_t v) { return _mm512_set1_epi32(static_cast<int32_t>(v)); }
inline Ints ramp() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints as_ints(Floats v) { return _mm512_castps_si512(v); }
inline Ints larger(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
inline Ints larger_signed(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline uint32_t largest(Ints v) { return _mm512_reduce_max_epu32(v); }
inline Ints smaller(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
template <int n>
inline Ints shift(Ints v) {
  return _mm512_srli_epi32(v, n);
}
template <int n>
inline Ints fold(Ints v) {
  return _mm512_xor_si512(v, shift<n>(v));
}
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
// NaN gives 0; `low` is -high. One instruction takes the smaller magnitude with v's sign.
inline Floats clamp(Floats v, Floats, Floats high) {
  const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  return _mm512_maskz_range_ps(number, v, high, 0b0010);
}
inline Ints nearest(Floats v) { return _mm512_cvtps_epi32(v); }
inline Ints downward(Floats v) {
  return _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
// Four vectors' bytes in order: packing works within 128-bit lanes, which then change places.
inline __m512i bytes_of(Ints a, Ints b, Ints c, Ints d, bool flip) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i lanes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  const __m512i bytes = _mm512_permutexvar_epi32(order, lanes);
  return flip ? _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80))) : bytes;
}
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int8_t* out) {
  _mm512_storeu_si512(out, bytes_of(a, b, c, d, flip));
}
inline void store_some_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int64_t n, int8_t* out) {
  _mm512_mask_storeu_epi8(out, (__mmask64{1} << n) - 1, bytes_of(a, b, c, d, flip));
}

void from_half(const uint16_t* v, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(halves));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_avx512() { return kLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
