// Vectors of 8 floats; see vectors_avx512.h, which has the same functions. `Some` lanes go through a
// copy.
#pragma once

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
// The low bytes of four vectors. Packing works within 128-bit lanes, which then change places.
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, uint8_t* out) {
  const Ints low = _mm256_set1_epi32(0xff);
  const Ints ab = _mm256_packs_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
  const Ints cd = _mm256_packs_epi32(_mm256_and_si256(c, low), _mm256_and_si256(d, low));
  const Ints order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order));
}

using Lanes = __m256;  // all ones or zero
struct All {};
struct Some {
  int64_t count;
  explicit Some(int64_t lanes) : count(lanes) {}
};

inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }  // b if one is NaN
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Ints larger_bits(Ints a, Ints b) { return _mm256_max_epu32(a, b); }
inline Ints larger_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline uint32_t largest_bits(Ints v) {
  uint32_t lanes[kWidth], most = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), v);
  for (uint32_t lane : lanes) most = lane > most ? lane : most;
  return most;
}
inline Ints load(const uint32_t* v) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v));
}
inline void store(Floats v, float* out) { _mm256_storeu_ps(out, v); }
inline void store(Ints v, uint32_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
}
inline Ints raw_bits(Floats v) { return _mm256_castps_si256(v); }
inline Ints magnitude(Floats v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}
inline Lanes not_below_or_at(Floats v, Floats bound) {
  return _mm256_cmp_ps(v, bound, _CMP_NLE_UQ);
}
inline Lanes not_above_or_at(Floats v, Floats bound) {
  return _mm256_cmp_ps(v, bound, _CMP_NGE_UQ);
}
inline Lanes both(Lanes a, Lanes b) { return _mm256_and_ps(a, b); }
inline Floats keep(Lanes lanes, Floats v) { return _mm256_and_ps(lanes, v); }

// sums[i] += v[i]
inline void add_to(double* sums, Floats v) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
  _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
}

// The first lanes' bytes in a block that is as large as all lanes'.
template <int64_t kSize>
struct Copy {
  alignas(32) uint8_t bytes[kWidth * kSize] = {};
  Copy() = default;
  Copy(const void* from, Some some) { __builtin_memcpy(bytes, from, some.count * kSize); }
  void to(void* out, Some some) const { __builtin_memcpy(out, bytes, some.count * kSize); }
};

inline Floats load(Float32, const void* v, int64_t at, All) {
  return _mm256_loadu_ps(static_cast<const float*>(v) + at);
}
inline Floats load(BFloat16, const void* v, int64_t at, All) {
  const auto* words = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(v) + at);
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(words)), 16));
}
inline Floats load(Half, const void* v, int64_t at, All) {
  const auto* words = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(v) + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(words));
}
template <typename D>
inline Floats load(D dtype, const void* v, int64_t at, Some some) {
  const Copy<D::kSize> copy(static_cast<const uint8_t*>(v) + at * D::kSize, some);
  return load(dtype, copy.bytes, 0, All{});
}

inline Floats rounded(Float32, Floats v) { return v; }
inline Floats rounded(BFloat16, Floats v) {
  const Ints bits = _mm256_castps_si256(v);
  const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const Ints moved =
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castsi256_ps(
      _mm256_and_si256(moved, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}
inline __m128i to_half(Floats v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats rounded(Half, Floats v) { return _mm256_cvtph_ps(to_half(v)); }

inline void store(Float32, Floats v, void* out, int64_t at, All) {
  _mm256_storeu_ps(static_cast<float*>(out) + at, v);
}
inline void store(BFloat16, Floats v, void* out, int64_t at, All) {
  const Ints words = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
  const Ints packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(out) + at),
                   _mm256_castsi256_si128(packed));
}
inline void store(Half, Floats v, void* out, int64_t at, All) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(out) + at), to_half(v));
}
template <typename D>
inline void store(D dtype, Floats v, void* out, int64_t at, Some some) {
  Copy<D::kSize> copy;
  store(dtype, v, copy.bytes, 0, All{});
  copy.to(static_cast<uint8_t*>(out) + at * D::kSize, some);
}

inline Floats load_bytes(const uint8_t* v, All) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))));
}
inline Floats load_bytes(const uint8_t* v, Some some) {
  return load_bytes(Copy<1>(v, some).bytes, All{});
}
inline void store_bytes(Ints v, uint8_t* out, All) {
  // The low bytes of each 128-bit lane's words, then both lanes' four bytes together.
  const __m256i pick = _mm256_set1_epi32(0x0C080400);
  const __m256i bytes = _mm256_shuffle_epi8(v, pick);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes),
                                          _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), both);
}
inline void store_bytes(Ints v, uint8_t* out, Some some) {
  Copy<1> copy;
  store_bytes(v, copy.bytes, All{});
  copy.to(out, some);
}

// Eight channels' bits are one byte, also those of some lanes.
template <typename Which>
inline Lanes load_bits(const uint8_t* row, int64_t c, Which) {
  const Ints bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const Ints set = _mm256_and_si256(_mm256_set1_epi32(row[c / 8]), bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
}
inline void store_bits(Lanes lanes, uint8_t* row, int64_t c, All) {
  row[c / 8] = static_cast<uint8_t>(_mm256_movemask_ps(lanes));
}
inline void store_bits(Lanes lanes, uint8_t* row, int64_t c, Some some) {
  row[c / 8] = static_cast<uint8_t>(_mm256_movemask_ps(lanes) & ((1 << some.count) - 1));
}

}  // namespace
}  // namespace daq_mm::cpu
