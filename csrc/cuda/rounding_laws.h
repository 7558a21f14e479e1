// How a float becomes 8 bits, for kernels: q = round_half_even(clamp(v * inverse)), or rounded at
// random. The result is the low byte of a word.
//
// Rounding is an addition of 1.5 * 2**23, whose sum has no room for a fraction: its low bits are
// the integer, rounded half to even, in two's complement.
#pragma once

#include <cmath>

#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

constexpr float kRoundingShift = 12582912.0f;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kSignBit = 0x80000000u;
constexpr float kSignedLevels = 127.0f;
constexpr float kUnsignedLevels = 255.0f;
constexpr float kSignedZeroPoint = 128.0f;

DAQ_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

DAQ_DEVICE bool is_finite(float v) { return (bits_of(v) & kInfinityBits) != kInfinityBits; }

// levels / threshold, 0 where that is not a finite number.
DAQ_DEVICE float inverse_step(float threshold, float levels) {
  const float inverse = divide(levels, threshold);
  return is_finite(inverse) && is_finite(threshold) ? inverse : 0.0f;
}

// v for |v| below 2**22 as an integer in the low bits, plus an even offset.
DAQ_DEVICE uint32_t rounded_bits(float v, float offset) {
  return bits_of(add(v, kRoundingShift + offset));
}

DAQ_DEVICE float clamped(float v, float limit) { return fminf(fmaxf(v, -limit), limit); }

// Magnitude and sign of the values seen, as unsigned integers that are ordered like them: NaN above
// Inf above numbers; `raw` above the sign bit says that there was one below -0.
struct Extremes {
  uint32_t magnitude = 0;
  uint32_t raw = 0;

  DAQ_DEVICE void see(float v) {
    const uint32_t bits = bits_of(v);
    magnitude = larger(magnitude, bits & ~kSignBit);
    raw = larger(raw, bits);
  }
};

// Bytes of shared memory that gather_extremes takes, for blocks of up to 1024 threads.
constexpr int64_t kExtremesShared = 2 * kWarp * sizeof(uint32_t);

// result <- what all threads of the block have seen, too. All take part.
DAQ_DEVICE void gather_extremes(Extremes seen, const Global<uint32_t>& result) {
  const Shared<uint32_t> of_warp(0, 2 * kWarp);
  const int warps = block_size() / kWarp;
  seen.magnitude = reduce_warp(seen.magnitude, larger);
  seen.raw = reduce_warp(seen.raw, larger);
  if (lane_index() == 0) {
    of_warp.store(warp_index(), seen.magnitude);
    of_warp.store(kWarp + warp_index(), seen.raw);
  }
  barrier();
  if (thread_index() < 2) {
    uint32_t most = 0;
    for (int w = 0; w < warps; ++w) most = larger(most, of_warp.load(thread_index() * kWarp + w));
    atomic_max(result, thread_index(), most);
  }
}

// An activation's grid, from its extremes.
struct ActivationGrid {
  float threshold;
  float levels;
  float zero_point;
  float inverse;
  float limit;  // 0 with a zero inverse: then v * inverse may be NaN, and the clamp makes it 0

  DAQ_DEVICE ActivationGrid(const Extremes& seen, bool allow_unsigned) {
    const bool negative = seen.raw > kSignBit || seen.magnitude > kInfinityBits;
    const bool is_unsigned = allow_unsigned && !negative;
    threshold = float_of_bits(seen.magnitude);
    levels = is_unsigned ? kUnsignedLevels : kSignedLevels;
    zero_point = is_unsigned ? 0.0f : kSignedZeroPoint;
    inverse = inverse_step(threshold, levels);
    limit = inverse == 0.0f ? 0.0f : levels;
  }
  DAQ_DEVICE uint32_t quantize(float v) const {
    return rounded_bits(clamped(multiply(v, inverse), limit), zero_point);
  }
};

// What uniform_of makes a number of: a position in channels-last order, and a seed. Next to a position
// that is a multiple of 2**n, those of the following 2**n - 1 are kNextPosition apart.
constexpr uint32_t kNextPosition = 0x9e3779b1u;
DAQ_DEVICE uint32_t position_bits(int64_t index, uint32_t seed) {
  return static_cast<uint32_t>(index) * kNextPosition +
         static_cast<uint32_t>(static_cast<uint64_t>(index) >> 32) * 0x85ebca77u + seed;
}

// Uniform in [0, 1); see reference.uniform_from_index.
DAQ_DEVICE float uniform_of(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  h = h ^ (h >> 16);
  return multiply(static_cast<float>(h >> 8), 0x1p-24f);
}

// How gradients are rounded: to nearest, or at random by a seed.
struct GradientRounding {
  bool random;
  uint32_t seed;

  DAQ_DEVICE explicit GradientRounding(const Global<const int64_t>& seeds)
      : random(!seeds.is_null()), seed(0) {
    if (random) seed = static_cast<uint32_t>(seeds.load(0));
  }
  // `index` is v's position in channels-last order.
  DAQ_DEVICE uint32_t quantize(float v, float inverse, int64_t index) const {
    return random ? at_random(v, inverse, position_bits(index, seed)) : to_nearest(v, inverse);
  }
  // `width` values side by side, with one branch for all. whole: `index` is a multiple of `width`, a
  // power of 2.
  template <bool whole, int width>
  DAQ_DEVICE void quantize(const float (&v)[width], const float (&inverse)[width], int64_t index,
                           uint32_t (&b)[width]) const {
    if (random) {
      const uint32_t first = position_bits(index, seed);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const uint32_t own = whole ? first + k * kNextPosition : position_bits(index + k, seed);
        b[k] = at_random(v[k], inverse[k], own);
      }
    } else {
#pragma unroll
      for (int k = 0; k < width; ++k) b[k] = to_nearest(v[k], inverse[k]);
    }
  }

 private:
  static DAQ_DEVICE float number_of(float v, float inverse) {
    const float scaled = multiply(v, inverse);
    return scaled == scaled ? clamped(scaled, kSignedLevels) : 0.0f;
  }
  static DAQ_DEVICE uint32_t to_nearest(float v, float inverse) {
    return rounded_bits(number_of(v, inverse), 0.0f);
  }
  static DAQ_DEVICE uint32_t at_random(float v, float inverse, uint32_t position) {
    const float moved = floorf(add(number_of(v, inverse), uniform_of(position)));
    return rounded_bits(fminf(moved, kSignedLevels), 0.0f);
  }
};

}  // namespace daq_mm::cuda
