// The loops of float_loops.h, written once: included by each float_loops_*.cpp within its own
// #pragma GCC target, so everything here is in an anonymous namespace and uses no library. The
// including file defines from_half and includes its vectors_*.h: Floats and Ints of kWidth lanes,
// and the operations on them that the compiler would not find by itself. Other loops it vectorizes.

#include "cpu/random_rounding.h"

namespace daq_mm::cpu {
namespace {

inline uint32_t bits_of(float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof(v));
  return v;
}

inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Calls f(i, All) for whole vectors of [i, count) and f(i, Some) for the last one, if it is partial.
template <typename F>
inline void for_rest(int64_t i, int64_t count, const F& f) {
  for (; i + kWidth <= count; i += kWidth) f(i, All{});
  if constexpr (kWidth > 1) {
    if (i < count) f(i, Some(count - i));
  }
}

void from_bfloat16(const uint16_t* __restrict v, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of(static_cast<uint32_t>(v[i]) << 16);
}

void scale(const float* __restrict v, float factor, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = v[i] * factor;
}

// Of integers without a sign the largest is a negative float, if there is one: that of the largest
// magnitude. Of integers with a sign the largest is the largest positive float.
template <typename D>
void extremes(const void* v, int64_t count, uint32_t* magnitude, uint32_t* raw) {
  Ints all[2] = {set_int(0), set_int(0)}, positive[2] = {set_int(0), set_int(0)};
  const auto step = [&](int which, Ints bits) {
    all[which] = larger_bits(all[which], bits);
    positive[which] = larger_ints(positive[which], bits);
  };
  int64_t i = 0;
  for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
    step(0, raw_bits(load(D{}, v, i, All{})));
    step(1, raw_bits(load(D{}, v, i + kWidth, All{})));
  }
  for_rest(i, count, [&](int64_t at, auto which) { step(0, raw_bits(load(D{}, v, at, which))); });
  const uint32_t a = largest_bits(larger_bits(all[0], all[1]));
  const uint32_t p = largest_bits(larger_bits(positive[0], positive[1]));
  *magnitude = larger(*magnitude, larger(a & 0x7FFFFFFFu, p));
  *raw = larger(*raw, a);
}

template <typename D>
void maxima(const void* v, int64_t count, uint32_t* __restrict magnitudes) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(larger_bits(load(magnitudes + i), magnitude(load(D{}, v, i, All{}))), magnitudes + i);
  }
  for_rest(i, count, [&](int64_t at, auto which) {
    uint32_t some[kWidth];
    store(magnitude(load(D{}, v, at, which)), some);
    for (int64_t j = 0; at + j < count; ++j) {
      magnitudes[at + j] = larger(magnitudes[at + j], some[j]);
    }
  });
}

// Stores the low bytes of value(i, which), the results for which values from i on, for i < count.
template <typename F>
inline void to_bytes(int64_t count, void* to, const F& value) {
  auto* out = static_cast<uint8_t*>(to);
  int64_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
    store_bytes(value(i, All{}), value(i + kWidth, All{}), value(i + 2 * kWidth, All{}),
                value(i + 3 * kWidth, All{}), out + i);
  }
  for_rest(i, count, [&](int64_t at, auto which) {
    store_bytes(value(at, which), out + at, which);
  });
}

template <typename D>
void quantize(const void* v, float inverse, float limit, int32_t offset, int64_t count,
              uint8_t* out) {
  const Floats high = set(limit), low = set(-limit), factor = set(inverse);
  const Ints move = set_int(static_cast<uint32_t>(offset));
  to_bytes(count, out, [&](int64_t at, auto which) {
    return add(nearest(clamp(mul(load(D{}, v, at, which), factor), low, high)), move);
  });
}

template <typename D>
void quantize_each(const void* v, const float* inverse, int64_t count, int8_t* out) {
  const Floats high = set(127.0f), low = set(-127.0f);
  to_bytes(count, out, [&](int64_t at, auto which) {
    const Floats factor = load(Float32{}, inverse, at, which);
    return nearest(clamp(mul(load(D{}, v, at, which), factor), low, high));
  });
}

void randomize(const float* v, float inverse, uint32_t hash, uint32_t stride, int64_t count,
               int8_t* out) {
  const Floats factor = set(inverse);
  const Ints lanes = mul(ramp(), set_int(stride));
  to_bytes(count, out, [&](int64_t at, auto which) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * stride));
    return randomly_rounded(mul(load(Float32{}, v, at, which), factor), input);
  });
}

void randomize_each(const float* v, const float* inverse, uint32_t hash, int64_t count,
                    int8_t* out) {
  const Ints lanes = mul(ramp(), set_int(kHashStride));
  to_bytes(count, out, [&](int64_t at, auto which) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * kHashStride));
    const Floats factor = load(Float32{}, inverse, at, which);
    return randomly_rounded(mul(load(Float32{}, v, at, which), factor), input);
  });
}

// A fixed number of partial sums, so that the order of additions is the same everywhere.
constexpr int64_t kLanes = 16;

void moments(const float* __restrict v, int64_t count, double* sum, double* squares) {
  double s[kLanes] = {}, q[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = v[i + lane];
      s[lane] += value;
      q[lane] += value * value;
    }
  }
  for (; i < count; ++i) {
    const double value = v[i];
    s[i % kLanes] += value;
    q[i % kLanes] += value * value;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    *sum += s[lane];
    *squares += q[lane];
  }
}

void moments_each(const float* __restrict v, int64_t count, double* __restrict sums,
                  double* __restrict squares) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = v[i];
    sums[i] += value;
    squares[i] += value * value;
  }
}

void tails(const float* __restrict v, float own, float all, int64_t count, int64_t* above_own,
           int64_t* above_all) {
  int64_t o = 0, a = 0;
  for (int64_t i = 0; i < count;) {
    // In pieces, so that 32-bit counts are enough within one.
    const int64_t stop = count - i < 65536 ? count : i + 65536;
    int32_t piece_own = 0, piece_all = 0;
    for (; i < stop; ++i) {
      const float magnitude = float_of(bits_of(v[i]) & 0x7FFFFFFFu);
      piece_own += magnitude > own ? 1 : 0;
      piece_all += magnitude > all ? 1 : 0;
    }
    o += piece_own;
    a += piece_all;
  }
  *above_own += o;
  *above_all += a;
}

void tails_each(const float* __restrict v, const float* __restrict own, float all, int64_t count,
                int32_t* __restrict above_own, int32_t* __restrict above_all) {
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = float_of(bits_of(v[i]) & 0x7FFFFFFFu);
    above_own[i] += magnitude > own[i] ? 1 : 0;
    above_all[i] += magnitude > all ? 1 : 0;
  }
}

template <typename D>
constexpr SourceLoops kSourceLoops{extremes<D>, maxima<D>, quantize<D>, quantize_each<D>};

constexpr FloatLoops kLoops{
    kSourceLoops<Float32>, kSourceLoops<BFloat16>, kSourceLoops<Half>, from_bfloat16, from_half,
    scale, randomize, randomize_each, moments, moments_each, tails, tails_each};

}  // namespace
}  // namespace daq_mm::cpu
