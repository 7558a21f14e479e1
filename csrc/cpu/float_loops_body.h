// The loops of float_loops.h, written once: included by each float_loops_*.cpp within its own
// #pragma GCC target, so everything here is in an anonymous namespace and uses no library. The
// including file defines from_half and the vectors: Floats and Ints of kWidth lanes, and the few
// operations on them that the compiler would not find by itself. Other loops it vectorizes.

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

void from_bfloat16(const uint16_t* __restrict v, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of(static_cast<uint32_t>(v[i]) << 16);
}

void scale(const float* __restrict v, float factor, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = v[i] * factor;
}

// Of integers without a sign the largest is a negative float, if there is one: that of the largest
// magnitude. Of integers with a sign the largest is the largest positive float.
template <typename T>
void extremes(const T* v, int64_t count, uint32_t* magnitude, uint32_t* raw) {
  Ints all[2] = {set_int(0), set_int(0)}, positive[2] = {set_int(0), set_int(0)};
  const auto step = [&](int which, Ints value) {
    all[which] = larger(all[which], value);
    positive[which] = larger_signed(positive[which], value);
  };
  int64_t i = 0;
  for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
    step(0, as_ints(load(v + i, Whole{})));
    step(1, as_ints(load(v + i + kWidth, Whole{})));
  }
  if (i < count) step(0, as_ints(load(v + i, count - i)));
  if (i + kWidth < count) step(1, as_ints(load(v + i + kWidth, count - i - kWidth)));
  const uint32_t a = largest(larger(all[0], all[1]));
  const uint32_t p = largest(larger(positive[0], positive[1]));
  *magnitude = larger(*magnitude, larger(a & 0x7FFFFFFFu, p));
  *raw = larger(*raw, a);
}

// The bits of a value as a float32; a bfloat16 is the upper half of one.
inline uint32_t widened(float v) { return bits_of(v); }
inline uint32_t widened(uint16_t v) { return static_cast<uint32_t>(v) << 16; }

template <typename T>
void maxima(const T* __restrict v, int64_t count, uint32_t* __restrict magnitudes) {
  for (int64_t i = 0; i < count; ++i) {
    magnitudes[i] = larger(magnitudes[i], widened(v[i]) & 0x7FFFFFFFu);
  }
}

// Stores the low bytes of what value(i, n) makes of the n values from i on, for i < count. n is
// Whole where a vector is full; otherwise any number, and values from n on are not read.
template <typename F>
inline void to_bytes(int64_t count, bool flip, int8_t* out, const F& value) {
  constexpr int64_t kRun = 4 * kWidth;
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    constexpr Whole whole;
    store_bytes(value(i, whole), value(i + kWidth, whole), value(i + 2 * kWidth, whole),
                value(i + 3 * kWidth, whole), flip, out + i);
  }
  const int64_t left = count - i;
  if (left == 0) return;
  store_some_bytes(value(i, left), value(i + kWidth, left - kWidth),
                   value(i + 2 * kWidth, left - 2 * kWidth),
                   value(i + 3 * kWidth, left - 3 * kWidth), flip, left, out + i);
}

template <typename T>
void quantize(const T* v, float inverse, float limit, int32_t offset, int64_t count,
              uint8_t* out) {
  const Floats high = set(limit), low = set(-limit), factor = set(inverse);
  // Bytes are packed with a sign: what exceeds 127 is moved down by 128 until its bit is flipped.
  const bool flip = limit + static_cast<float>(offset) > 127.0f;
  const Ints move = set_int(static_cast<uint32_t>(flip ? offset - 128 : offset));
  to_bytes(count, flip, reinterpret_cast<int8_t*>(out), [&](int64_t at, auto some) {
    return add(nearest(clamp(mul(load(v + at, some), factor), low, high)), move);
  });
}

template <typename T>
void quantize_each(const T* v, const float* inverse, int64_t count, int8_t* out) {
  const Floats high = set(127.0f), low = set(-127.0f);
  to_bytes(count, false, out, [&](int64_t at, auto some) {
    return nearest(clamp(mul(load(v + at, some), load(inverse + at, some)), low, high));
  });
}

// 32-bit finalizer of MurmurHash3, to 24 bits in [0, 1).
inline Floats uniform(Ints h) {
  h = mul(fold<16>(h), set_int(0x85EBCA6Bu));
  h = mul(fold<13>(h), set_int(0xC2B2AE35u));
  return mul(to_floats(shift<8>(fold<16>(h))), set(0x1p-24f));
}

inline Ints randomly_rounded(Floats scaled, Ints hash) {
  const Floats moved = add(clamp(scaled, set(-127.0f), set(127.0f)), uniform(hash));
  return smaller(downward(moved), set_int(127));
}

void randomize(const float* v, float inverse, uint32_t hash, uint32_t stride, int64_t count,
               int8_t* out) {
  const Floats factor = set(inverse);
  const Ints lanes = mul(ramp(), set_int(stride));
  to_bytes(count, false, out, [&](int64_t at, auto some) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * stride));
    return randomly_rounded(mul(load(v + at, some), factor), input);
  });
}

void randomize_each(const float* v, const float* inverse, uint32_t hash, int64_t count,
                    int8_t* out) {
  const Ints lanes = mul(ramp(), set_int(kHashStride));
  to_bytes(count, false, out, [&](int64_t at, auto some) {
    const Ints input = add(lanes, set_int(hash + static_cast<uint32_t>(at) * kHashStride));
    return randomly_rounded(mul(load(v + at, some), load(inverse + at, some)), input);
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

constexpr FloatLoops kLoops{
    from_bfloat16,      from_half,        scale,
    extremes<float>,    maxima<float>,    quantize<float>,    quantize_each<float>,
    extremes<uint16_t>, maxima<uint16_t>, quantize<uint16_t>, quantize_each<uint16_t>,
    randomize,          randomize_each,   moments,            moments_each,
    tails,              tails_each};

}  // namespace
}  // namespace daq_mm::cpu
