// Float tensors of three types as kernels read and write them: single values and vectors of
// kVector values, converted to and from float32.
//
// A vector is one or two 16-byte accesses for 16-bit and 32-bit types; its address must be a
// multiple of 16 bytes.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/launches.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

constexpr int kVector = 8;

template <FloatType type>
using FloatWord = std::conditional_t<type == FloatType::float32, float, uint16_t>;

template <FloatType type>
using FloatSource = Global<const FloatWord<type>>;

template <FloatType type>
using FloatTarget = Global<FloatWord<type>>;

template <FloatType type>
FloatSource<type> source_of(const FloatData& data) {
  return {static_cast<const FloatWord<type>*>(data.data), data.count};
}

template <FloatType type>
FloatTarget<type> target_of(void* data, int64_t count) {
  return {static_cast<FloatWord<type>*>(data), count};
}

template <FloatType type>
DAQ_DEVICE float from_word(FloatWord<type> word) {
  if constexpr (type == FloatType::float32) {
    return word;
  } else if constexpr (type == FloatType::bfloat16) {
    return float_from_bfloat16(word);
  } else {
    return float_from_half(word);
  }
}

template <FloatType type>
DAQ_DEVICE FloatWord<type> to_word(float v) {
  if constexpr (type == FloatType::float32) {
    return v;
  } else if constexpr (type == FloatType::bfloat16) {
    return bfloat16_from_float(v);
  } else {
    return half_from_float(v);
  }
}

// v as it would be read again after a store.
template <FloatType type>
DAQ_DEVICE float rounded_to(float v) {
  return from_word<type>(to_word<type>(v));
}

// Values i.. of a source; width is 1 or kVector.
template <FloatType type, int width>
DAQ_DEVICE void load_values(const FloatSource<type>& source, int64_t i, float (&v)[width]) {
  if constexpr (width == 1) {
    v[0] = from_word<type>(source.load(i));
  } else if constexpr (type == FloatType::float32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Bytes16 four = source.template load_as<Bytes16>(i + 4 * half);
#pragma unroll
      for (int k = 0; k < 4; ++k) v[4 * half + k] = float_of_bits(four.word[k]);
    }
  } else {
    const Bytes16 eight = source.template load_as<Bytes16>(i);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      v[k] = from_word<type>(static_cast<uint16_t>(eight.word[k / 2] >> (16 * (k % 2))));
    }
  }
}

// `width` values, 1 or kVector, as they lie in memory: loaded now, unpacked when they are used.
template <FloatType type, int width>
struct FloatWords {
  static constexpr bool kPairs = width > 1 && type != FloatType::float32;

  uint32_t word[kPairs ? width / 2 : width] = {};

  // From element i on, where wanted; else the words stay.
  DAQ_DEVICE void load_if(bool wanted, const FloatSource<type>& source, int64_t i) {
    if constexpr (width == 1) {
      source.template load_if<sizeof(FloatWord<type>)>(wanted, i, word);
    } else {
      source.template load_if<16>(wanted, i, word);
      if constexpr (!kPairs) source.template load_if<16>(wanted, i + 4, word + 4);
    }
  }
  DAQ_DEVICE float value(int k) const {
    if constexpr (type == FloatType::float32) {
      return float_of_bits(word[k]);
    } else {
      const uint32_t bits = kPairs ? word[k / 2] >> (16 * (k % 2)) : word[k];
      return from_word<type>(static_cast<uint16_t>(bits));
    }
  }
};

template <FloatType type, int width>
DAQ_DEVICE void store_values(const FloatTarget<type>& target, int64_t i, const float (&v)[width]) {
  if constexpr (width == 1) {
    target.store(i, to_word<type>(v[0]));
  } else if constexpr (type == FloatType::float32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Bytes16 four;
#pragma unroll
      for (int k = 0; k < 4; ++k) four.word[k] = bits_of(v[4 * half + k]);
      target.store_as(i + 4 * half, four);
    }
  } else {
    Bytes16 eight;
#pragma unroll
    for (int k = 0; k < width; k += 2) {
      eight.word[k / 2] = static_cast<uint32_t>(to_word<type>(v[k])) |
                          static_cast<uint32_t>(to_word<type>(v[k + 1])) << 16;
    }
    target.store_as(i, eight);
  }
}

// The low bytes of eight words.
DAQ_DEVICE Bytes8 pack_bytes(const uint32_t (&b)[kVector]) {
  Bytes8 packed;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t* four = b + 4 * half;
    packed.word[half] = permute_bytes(permute_bytes(four[0], four[1], 0x0040),
                                      permute_bytes(four[2], four[3], 0x0040), 0x5410);
  }
  return packed;
}

// Low bytes of `width` words to bytes i.. of a target of 8-bit values.
template <int width, typename T>
DAQ_DEVICE void store_bytes(const Global<T>& target, int64_t i, const uint32_t (&b)[width]) {
  if constexpr (width == 1) {
    target.store(i, static_cast<T>(b[0]));
  } else {
    target.store_as(i, pack_bytes(b));
  }
}

// Host: f(std::integral_constant<FloatType, type>) of a run-time type.
template <typename F>
void with_float_type(FloatType type, const F& f) {
  switch (type) {
    case FloatType::float32:
      f(std::integral_constant<FloatType, FloatType::float32>());
      return;
    case FloatType::bfloat16:
      f(std::integral_constant<FloatType, FloatType::bfloat16>());
      return;
    case FloatType::float16:
      f(std::integral_constant<FloatType, FloatType::float16>());
      return;
  }
}

}  // namespace daq_mm::cuda
