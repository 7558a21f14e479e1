// "Vectors" of one float; see vectors_avx512.h, which has the same functions.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace daq_mm::cpu {
namespace {

using Floats = float;
using Ints = uint32_t;
constexpr int64_t kWidth = 1;

inline Floats load(const float* v) { return *v; }
inline Floats set(float v) { return v; }
inline Ints set_int(uint32_t v) { return v; }
inline Ints ramp() { return 0; }
inline Floats mul(Floats a, Floats b) { return a * b; }
inline Floats add(Floats a, Floats b) { return a + b; }
inline Ints mul(Ints a, Ints b) { return a * b; }
inline Ints add(Ints a, Ints b) { return a + b; }
inline Ints smaller(Ints a, Ints b) {
  return static_cast<int32_t>(a) < static_cast<int32_t>(b) ? a : b;
}
template <int n>
inline Ints shift(Ints v) {
  return v >> n;
}
template <int n>
inline Ints fold(Ints v) {
  return v ^ (v >> n);
}
inline Floats to_floats(Ints v) { return static_cast<float>(static_cast<int32_t>(v)); }
inline Floats clamp(Floats v, Floats low, Floats high) {  // NaN gives 0
  v = v == v ? v : 0.0f;
  v = v > low ? v : low;
  return v < high ? v : high;
}
// Adding 1.5 * 2**23 leaves the value, rounded half to even, in the low bits; |v| < 2**22.
inline Ints nearest(Floats v) {
  constexpr float kRounder = 12582912.0f;
  const float moved = v + kRounder;
  uint32_t bits, base;
  __builtin_memcpy(&bits, &moved, sizeof(bits));
  __builtin_memcpy(&base, &kRounder, sizeof(base));
  return bits - base;
}
inline Ints downward(Floats v) {
  const Ints near = nearest(v);
  return to_floats(near) > v ? near - 1 : near;
}
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, uint8_t* out) {
  const Ints values[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(values[i]);
}

using Lanes = bool;
struct All {};
using Some = All;  // a vector of one lane is always whole

inline Floats sub(Floats a, Floats b) { return a - b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }  // b if one is NaN
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Ints larger_bits(Ints a, Ints b) { return a > b ? a : b; }
inline Ints larger_ints(Ints a, Ints b) {
  return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? a : b;
}
inline uint32_t largest_bits(Ints v) { return v; }
inline Ints load(const uint32_t* v) { return *v; }
inline void store(Floats v, float* out) { *out = v; }
inline void store(Ints v, uint32_t* out) { *out = v; }
inline Ints raw_bits(Floats v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits;
}
inline Ints magnitude(Floats v) { return raw_bits(v) & 0x7fffffffu; }
inline Lanes not_below_or_at(Floats v, Floats bound) { return !(v <= bound); }
inline Lanes not_above_or_at(Floats v, Floats bound) { return !(v >= bound); }
inline Lanes both(Lanes a, Lanes b) { return a && b; }
inline Floats keep(Lanes lanes, Floats v) { return lanes ? v : 0.0f; }
inline void add_to(double* sums, Floats v) { *sums += v; }

template <typename D>
struct Stored;
template <>
struct Stored<Float32> {
  using type = float;
};
template <>
struct Stored<BFloat16> {
  using type = c10::BFloat16;
};
template <>
struct Stored<Half> {
  using type = c10::Half;
};

template <typename D>
inline Floats load(D, const void* v, int64_t at, All) {
  return static_cast<float>(static_cast<const typename Stored<D>::type*>(v)[at]);
}
template <typename D>
inline Floats rounded(D, Floats v) {
  return static_cast<float>(static_cast<typename Stored<D>::type>(v));
}
template <typename D>
inline void store(D, Floats v, void* out, int64_t at, All) {
  using T = typename Stored<D>::type;
  static_cast<T*>(out)[at] = static_cast<T>(v);
}
inline Floats load_bytes(const uint8_t* v, All) { return *v; }
inline void store_bytes(Ints v, uint8_t* out, All) { *out = static_cast<uint8_t>(v); }

inline Lanes load_bits(const uint8_t* row, int64_t c, All) { return row[c / 8] >> (c % 8) & 1; }
inline void store_bits(Lanes lanes, uint8_t* row, int64_t c, All) {
  const uint8_t bit = static_cast<uint8_t>(lanes ? 1 << (c % 8) : 0);
  row[c / 8] = static_cast<uint8_t>(c % 8 == 0 ? bit : row[c / 8] | bit);
}

}  // namespace
}  // namespace daq_mm::cpu
