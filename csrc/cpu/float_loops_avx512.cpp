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

inline Floats load(const float* v) { return _mm512_loadu_ps(v); }
inline Floats set(float v) { return _mm512_set1_ps(v); }
inline Ints set_int(uint32_t v) { return _mm512_set1_epi32(static_cast<int32_t>(v)); }
inline Ints ramp() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
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
inline Floats clamp(Floats v, Floats low, Floats high) {  // NaN gives 0
  const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  return _mm512_maskz_min_ps(number, _mm512_max_ps(v, low), high);
}
inline Ints nearest(Floats v) { return _mm512_cvtps_epi32(v); }
inline Ints downward(Floats v) {
  return _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline void store_bytes(Ints v, int8_t* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v));
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
