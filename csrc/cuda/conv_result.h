// The end of a product: integer sums to the stored bits of a result, and results to memory.
#pragma once

#include <type_traits>

#include "cuda/conv_kernels.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

// The grid of activations, (step, zero point), lies in device memory, where no check can look: a
// zero point that is no integer in 0..255, which the CPU ops refuse, makes the step NaN and so all
// float results.
DAQ_DEVICE bool is_zero_point(float value) {
  return value >= 0.0f && value <= 255.0f && round_half_even(value) == value;
}
DAQ_DEVICE float source_step(const Global<const float>& qparams) {
  return is_zero_point(qparams.load(1)) ? qparams.load(0) : float_of_bits(0x7fc00000u);
}
DAQ_DEVICE uint32_t source_zero_point(const Global<const float>& qparams) {
  const float value = qparams.load(1);
  return is_zero_point(value) ? static_cast<uint32_t>(value) : 0u;
}

// A float's bits as a result of a float type, rounded to it.
template <ResultType type>
DAQ_DEVICE uint32_t float_bits_as(float value) {
  static_assert(type != ResultType::kInt32);
  if constexpr (type == ResultType::kBFloat16) return bfloat16_from_float(value);
  if constexpr (type == ResultType::kFloat16) return half_from_float(value);
  return bits_of(value);
}

// float(sum) * scale [+ bias], each rounded by itself, then to the result's type; int32 keeps the
// sum modulo 2**32. sum_t: int32_t or int64_t.
template <ResultType type, typename sum_t>
DAQ_DEVICE uint32_t result_bits_as(sum_t sum, float scale, bool has_bias, float bias) {
  if constexpr (type == ResultType::kInt32) {
    return static_cast<uint32_t>(sum);
  } else {
    float value = multiply(static_cast<float>(sum), scale);
    if (has_bias) value = add(value, bias);
    return float_bits_as<type>(value);
  }
}

// work(constant of the type), so that loops within it need not ask for the type.
template <typename F>
DAQ_DEVICE void with_type(ResultType type, F work) {
  using enum ResultType;
  switch (type) {
    case kFloat32: return work(std::integral_constant<ResultType, kFloat32>{});
    case kBFloat16: return work(std::integral_constant<ResultType, kBFloat16>{});
    case kFloat16: return work(std::integral_constant<ResultType, kFloat16>{});
    case kInt32: return work(std::integral_constant<ResultType, kInt32>{});
  }
}

template <typename sum_t>
DAQ_DEVICE uint32_t result_bits(sum_t sum, float scale, bool has_bias, float bias,
                                ResultType type) {
  uint32_t bits = 0;
  with_type(type, [&](auto constant) {
    bits = result_bits_as<constant.value>(sum, scale, has_bias, bias);
  });
  return bits;
}

// The float that the stored bits mean; not for int32.
DAQ_DEVICE float result_value(uint32_t bits, ResultType type) {
  if (type == ResultType::kBFloat16) return float_from_bfloat16(static_cast<uint16_t>(bits));
  if (type == ResultType::kFloat16) return float_from_half(static_cast<uint16_t>(bits));
  return float_of_bits(bits);
}

// Results in memory of any of the types.
struct Results {
  Global<uint8_t> bytes;
  ResultType type = ResultType::kFloat32;
  bool aligned = false;  // a block of channels that starts at a multiple of 16 bytes within its
                         // row does so in memory

  DAQ_DEVICE bool wide() const {
    return type == ResultType::kFloat32 || type == ResultType::kInt32;
  }
  DAQ_DEVICE int size() const { return wide() ? 4 : 2; }
  DAQ_DEVICE void store(int64_t i, uint32_t bits) const {
    if (wide()) {
      bytes.store_as<uint32_t>(i * 4, bits);
    } else {
      bytes.store_as<uint16_t>(i * 2, static_cast<uint16_t>(bits));
    }
  }
};

// Sum, sum of squares, minimum and maximum of values; NaN stays in all of them.
struct Statistics {
  float sum = 0.0f;
  float squares = 0.0f;
  float low = float_of_bits(0x7f800000u);
  float high = float_of_bits(0xff800000u);

  DAQ_DEVICE void include(float value) {
    sum = cuda::add(sum, value);
    squares = cuda::add(squares, multiply(value, value));
    low = lower_of(low, value);
    high = higher_of(high, value);
  }
  DAQ_DEVICE void include(const Statistics& other) {
    sum = cuda::add(sum, other.sum);
    squares = cuda::add(squares, other.squares);
    low = lower_of(low, other.low);
    high = higher_of(high, other.high);
  }
  // By value: a choice between places would put them into memory.
  static DAQ_DEVICE Statistics chosen(bool first, const Statistics& a, const Statistics& b) {
    Statistics c;
    c.sum = first ? a.sum : b.sum;
    c.squares = first ? a.squares : b.squares;
    c.low = first ? a.low : b.low;
    c.high = first ? a.high : b.high;
    return c;
  }
  DAQ_DEVICE Statistics of_lane_across(int mask) const {
    Statistics other;
    other.sum = shuffle_xor(sum, mask);
    other.squares = shuffle_xor(squares, mask);
    other.low = shuffle_xor(low, mask);
    other.high = shuffle_xor(high, mask);
    return other;
  }
  template <typename memory_t>
  DAQ_DEVICE void store(const memory_t& memory, int64_t i, int64_t stride) const {
    memory.store(i, sum);
    memory.store(i + stride, squares);
    memory.store(i + 2 * stride, low);
    memory.store(i + 3 * stride, high);
  }
  template <typename memory_t>
  static DAQ_DEVICE Statistics load(const memory_t& memory, int64_t i, int64_t stride) {
    Statistics s;
    s.sum = memory.load(i);
    s.squares = memory.load(i + stride);
    s.low = memory.load(i + 2 * stride);
    s.high = memory.load(i + 3 * stride);
    return s;
  }
};

}  // namespace daq_mm::cuda
