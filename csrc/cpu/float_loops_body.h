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

void from_bfloat16(const uint16_t* __restrict v, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of(static_cast<uint32_t>(v[i]) << 16);
}

void scale(const float* __restrict v, float factor, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = v[i] * factor;
}

void extremes(const float* __restrict v, int64_t count, uint32_t* magnitude, uint32_t* raw) {
  uint32_t m = *magnitude, r = *raw;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(v[i]);
    m = larger(m, bits & 0x7FFFFFFFu);
    r = larger(r, bits);
  }
  *magnitude = m;
  *raw = r;
}

void maxima(const float* __restrict v, int64_t count, uint32_t* __restrict magnitudes) {
  for (int64_t i = 0; i < count; ++i) {
    magnitudes[i] = larger(magnitudes[i], bits_of(v[i]) & 0x7FFFFFFFu);
  }
}

// Handles the last values that fill no vector: they are copied to one that is padded by zeros.
struct Tail {
  float v[kWidth] = {};
  float inverse[kWidth] = {};
  int8_t out[kWidth];

  Tail(const float* from, const float* inverses, int64_t count) {
    for (int64_t i = 0; i < count; ++i) v[i] = from[i];
    if (inverses == nullptr) return;
    for (int64_t i = 0; i < count; ++i) inverse[i] = inverses[i];
  }
  void store(int64_t count, int8_t* to) const {
    for (int64_t i = 0; i < count; ++i) to[i] = out[i];
  }
};

void quantize(const float* v, float inverse, float limit, int32_t offset, int64_t count,
              uint8_t* out) {
  const Floats high = set(limit), low = set(-limit), factor = set(inverse);
  const Ints move = set_int(static_cast<uint32_t>(offset));
  const auto step = [&](const float* from, int8_t* to) {
    store_bytes(add(nearest(clamp(mul(load(from), factor), low, high)), move), to);
  };
  int8_t* to = reinterpret_cast<int8_t*>(out);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(v + i, to + i);
  if (i == count) return;
  Tail tail(v + i, nullptr, count - i);
  step(tail.v, tail.out);
  tail.store(count - i, to + i);
}

void quantize_each(const float* v, const float* inverse, int64_t count, int8_t* out) {
  const Floats high = set(127.0f), low = set(-127.0f);
  const auto step = [&](const float* from, const float* factors, int8_t* to) {
    store_bytes(nearest(clamp(mul(load(from), load(factors)), low, high)), to);
  };
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(v + i, inverse + i, out + i);
  if (i == count) return;
  Tail tail(v + i, inverse + i, count - i);
  step(tail.v, tail.inverse, tail.out);
  tail.store(count - i, out + i);
}

void randomize(const float* v, float inverse, uint32_t hash, uint32_t stride, int64_t count,
               int8_t* out) {
  const Floats factor = set(inverse);
  const Ints lanes = mul(ramp(), set_int(stride));
  const auto step = [&](const float* from, int64_t at, int8_t* to) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * stride));
    store_bytes(randomly_rounded(mul(load(from), factor), input), to);
  };
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(v + i, i, out + i);
  if (i == count) return;
  Tail tail(v + i, nullptr, count - i);
  step(tail.v, i, tail.out);
  tail.store(count - i, out + i);
}

void randomize_each(const float* v, const float* inverse, uint32_t hash, int64_t count,
                    int8_t* out) {
  const Ints lanes = mul(ramp(), set_int(kHashStride));
  const auto step = [&](const float* from, const float* factors, int64_t at, int8_t* to) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * kHashStride));
    store_bytes(randomly_rounded(mul(load(from), load(factors)), input), to);
  };
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(v + i, inverse + i, i, out + i);
  if (i == count) return;
  Tail tail(v + i, inverse + i, count - i);
  step(tail.v, tail.inverse, i, tail.out);
  tail.store(count - i, out + i);
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

constexpr FloatLoops kLoops{from_bfloat16, from_half,     scale,     extremes,       maxima,
                            quantize,      quantize_each, randomize, randomize_each, moments,
                            moments_each,  tails,         tails_each};

}  // namespace
}  // namespace daq_mm::cpu
