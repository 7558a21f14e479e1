// Vectors of 16 floats for the loops that are written once for all instruction sets
// (float_loops_body.h, glue_body.h). Include this within the region of the target pragma, after
// <immintrin.h> and float_types.h.
//
// `All` lanes of a vector are in memory, or `Some`: the first ones; the others read as 0.
#pragma once

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
// The low bytes of four vectors. Packing works within 128-bit lanes, which then change places.
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, uint8_t* out) {
  const Ints low = _mm512_set1_epi32(0xff);
  const Ints ab = _mm512_packs_epi32(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
  const Ints cd = _mm512_packs_epi32(_mm512_and_si512(c, low), _mm512_and_si512(d, low));
  const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
}

using Lanes = __mmask16;
struct All {};
struct Some {
  __mmask16 lanes;
  int64_t bytes;  // of the lanes' bits
  explicit Some(int64_t count)
      : lanes(static_cast<__mmask16>((1u << count) - 1)), bytes((count + 7) / 8) {}
};

inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }  // b if one is NaN
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Ints larger_bits(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
inline Ints larger_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline uint32_t largest_bits(Ints v) { return _mm512_reduce_max_epu32(v); }
inline Ints load(const uint32_t* v) { return _mm512_loadu_si512(v); }
inline void store(Floats v, float* out) { _mm512_storeu_ps(out, v); }
inline void store(Ints v, uint32_t* out) { _mm512_storeu_si512(out, v); }
inline Ints raw_bits(Floats v) { return _mm512_castps_si512(v); }
inline Ints magnitude(Floats v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
inline Lanes not_below_or_at(Floats v, Floats bound) {
  return _mm512_cmp_ps_mask(v, bound, _CMP_NLE_UQ);
}
inline Lanes not_above_or_at(Floats v, Floats bound) {
  return _mm512_cmp_ps_mask(v, bound, _CMP_NGE_UQ);
}
inline Lanes both(Lanes a, Lanes b) { return static_cast<Lanes>(a & b); }
inline Floats keep(Lanes lanes, Floats v) { return _mm512_maskz_mov_ps(lanes, v); }

// sums[i] += v[i]
inline void add_to(double* sums, Floats v) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
  _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
}

inline __m256i load_words(const void* v, int64_t at, All) {
  return _mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(v) + at));
}
inline __m256i load_words(const void* v, int64_t at, Some some) {
  return _mm256_maskz_loadu_epi16(some.lanes, static_cast<const uint16_t*>(v) + at);
}
inline void store_words(__m256i v, void* out, int64_t at, All) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(out) + at), v);
}
inline void store_words(__m256i v, void* out, int64_t at, Some some) {
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + at, some.lanes, v);
}

// Element `at` of a tensor of that dtype and those behind it, and back.
inline Floats load(Float32, const void* v, int64_t at, All) {
  return _mm512_loadu_ps(static_cast<const float*>(v) + at);
}
inline Floats load(Float32, const void* v, int64_t at, Some some) {
  return _mm512_maskz_loadu_ps(some.lanes, static_cast<const float*>(v) + at);
}
template <typename Which>
inline Floats load(BFloat16, const void* v, int64_t at, Which which) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(v, at, which)), 16));
}
template <typename Which>
inline Floats load(Half, const void* v, int64_t at, Which which) {
  return _mm512_cvtph_ps(load_words(v, at, which));
}

// A value of the dtype next to v. A NaN must have its low 16 bits clear, as those of bfloat16 and
// of arithmetic have.
inline Floats rounded(Float32, Floats v) { return v; }
inline Floats rounded(BFloat16, Floats v) {
  const Ints bits = _mm512_castps_si512(v);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  Ints moved = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  moved = _mm512_mask_add_epi32(moved, odd, moved, _mm512_set1_epi32(1));
  return _mm512_castsi512_ps(
      _mm512_and_si512(moved, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}
inline __m256i to_half(Floats v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats rounded(Half, Floats v) { return _mm512_cvtph_ps(to_half(v)); }

// Stores rounded values.
inline void store(Float32, Floats v, void* out, int64_t at, All) {
  _mm512_storeu_ps(static_cast<float*>(out) + at, v);
}
inline void store(Float32, Floats v, void* out, int64_t at, Some some) {
  _mm512_mask_storeu_ps(static_cast<float*>(out) + at, some.lanes, v);
}
template <typename Which>
inline void store(BFloat16, Floats v, void* out, int64_t at, Which which) {
  const Ints words = _mm512_srli_epi32(_mm512_castps_si512(v), 16);
  store_words(_mm512_cvtepi32_epi16(words), out, at, which);
}
template <typename Which>
inline void store(Half, Floats v, void* out, int64_t at, Which which) {
  store_words(to_half(v), out, at, which);
}

inline Floats load_bytes(const uint8_t* v, All) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))));
}
inline Floats load_bytes(const uint8_t* v, Some some) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some.lanes, v)));
}
inline void store_bytes(Ints v, uint8_t* out, All) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v));
}
inline void store_bytes(Ints v, uint8_t* out, Some some) {
  _mm_mask_storeu_epi8(out, some.lanes, _mm512_cvtepi32_epi8(v));
}

// The bits of channels c.. in a pixel's row of a mask.
inline Lanes load_bits(const uint8_t* row, int64_t c, All) {
  uint16_t bits;
  __builtin_memcpy(&bits, row + c / 8, 2);
  return bits;
}
inline Lanes load_bits(const uint8_t* row, int64_t c, Some some) {
  const uint32_t high = some.bytes > 1 ? row[c / 8 + 1] : 0;
  return static_cast<Lanes>(row[c / 8] | high << 8);
}
inline void store_bits(Lanes lanes, uint8_t* row, int64_t c, All) {
  const uint16_t bits = lanes;
  __builtin_memcpy(row + c / 8, &bits, 2);
}
inline void store_bits(Lanes lanes, uint8_t* row, int64_t c, Some some) {
  const uint32_t bits = lanes & some.lanes;
  row[c / 8] = static_cast<uint8_t>(bits);
  if (some.bytes > 1) row[c / 8 + 1] = static_cast<uint8_t>(bits >> 8);
}

}  // namespace
}  // namespace daq_mm::cpu
