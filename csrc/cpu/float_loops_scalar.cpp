// float_loops.h with the instructions that every processor of the platform has.

#include <c10/util/Half.h>

#include "cpu/float_loops.h"

namespace daq_mm::cpu {
namespace {

using Floats = float;
using Ints = uint32_t;
constexpr int64_t kWidth = 1;

inline Floats load(const float* v, Whole) { return *v; }
inline Floats load(const uint16_t* v, Whole) {
  const uint32_t bits = static_cast<uint32_t>(*v) << 16;
  Floats value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
template <typename T>
inline Floats load(const T* v, int64_t n) {
  return n > 0 ? load(v, Whole{}) : 0.0f;
}
inline Floats set(float v) { return v; }
inline Ints set_int(uint32_t v) { return v; }
inline Ints ramp() { return 0; }
inline Floats mul(Floats a, Floats b) { return a * b; }
inline Floats add(Floats a, Floats b) { return a + b; }
inline Ints mul(Ints a, Ints b) { return a * b; }
inline Ints add(Ints a, Ints b) { return a + b; }
inline Ints as_ints(Floats v) {
  Ints bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits;
}
inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }
inline Ints larger_signed(Ints a, Ints b) {
  return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? a : b;
}
inline uint32_t largest(Ints v) { return v; }
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
inline void store_some_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int64_t n, int8_t* out) {
  const Ints values[4] = {a, b, c, d};
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(values[i] ^ (flip ? 0x80u : 0u));
}
inline void store_bytes(Ints a, Ints b, Ints c, Ints d, bool flip, int8_t* out) {
  store_some_bytes(a, b, c, d, flip, 4, out);
}

void from_half(const uint16_t* v, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = c10::detail::fp16_ieee_to_fp32_value(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_scalar() { return kLoops; }

}  // namespace daq_mm::cpu
