// The end of a product: integer sums to the stored bits of a result, and results to memory.
#pragma once

#include "cuda/conv_kernels.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

// float(sum) * scale [+ bias], each rounded by itself, then to the result's type; int32 keeps the
// sum modulo 2**32. sum_t: int32_t or int64_t.
template <typename sum_t>
DAQ_DEVICE uint32_t result_bits(sum_t sum, float scale, bool has_bias, float bias,
                                ResultType type) {
  if (type == ResultType::kInt32) return static_cast<uint32_t>(sum);
  float value = multiply(static_cast<float>(sum), scale);
  if (has_bias) value = add(value, bias);
  if (type == ResultType::kBFloat16) return bfloat16_from_float(value);
  if (type == ResultType::kFloat16) return half_from_float(value);
  return bits_of(value);
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

  static DAQ_DEVICE float lower(float a, float b) { return is_nan(a) || a < b ? a : b; }
  static DAQ_DEVICE float higher(float a, float b) { return is_nan(a) || a > b ? a : b; }

  DAQ_DEVICE void include(float value) {
    sum = cuda::add(sum, value);
    squares = cuda::add(squares, multiply(value, value));
    low = lower(low, value);
    high = higher(high, value);
  }
  DAQ_DEVICE void include(const Statistics& other) {
    sum = cuda::add(sum, other.sum);
    squares = cuda::add(squares, other.squares);
    low = lower(low, other.low);
    high = higher(high, other.high);
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
