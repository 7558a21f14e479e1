// Loops over floats that quantizers and thresholds are made of, one table for each instruction
// set; called by daq_mm::quantize_x, quantize_w, quantize_w_folded, quantize_g, update_thresholds
// and conv_backward.
//
//   quantized value   q = round_half_even(clamp(v * inverse, -limit, limit)), NaN gives 0
//   random rounding   q = clamp(floor(clamp(v * inverse) + u)), u in [0, 1) from a hash
//
// Magnitudes travel as the bits of |v|: as integers they order like the floats, Inf above every
// number and NaN above Inf, so that a maximum never loses a NaN.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace daq_mm::cpu {

// Input of the hash for the value at `index` (channels-last order): index * kHashStride + the
// seed, and the index's high word times kHashHighStride.
constexpr uint32_t kHashStride = 0x9E3779B1u;
constexpr uint32_t kHashHighStride = 0x85EBCA77u;

// Loops that read a tensor's dtype as it is: to convert it beforehand would cost more than they do.
struct SourceLoops {
  // magnitude = max(magnitude, bits of |v|), raw = max(raw, bits of v): raw > 0x80000000 says that
  // there is a value below zero.
  void (*extremes)(const void* v, int64_t count, uint32_t* magnitude, uint32_t* raw);
  // magnitudes[i] = max(magnitudes[i], bits of |v[i]|)
  void (*maxima)(const void* v, int64_t count, uint32_t* magnitudes);

  // One inverse for all, results moved by `offset`; and one for each value, limit 127.
  void (*quantize)(const void* v, float inverse, float limit, int32_t offset, int64_t count,
                   uint8_t* out);
  void (*quantize_each)(const void* v, const float* inverse, int64_t count, int8_t* out);
};

struct FloatLoops {
  SourceLoops float32, bfloat16, half;

  void (*from_bfloat16)(const uint16_t* v, int64_t count, float* out);
  void (*from_half)(const uint16_t* v, int64_t count, float* out);

  // out = v * factor
  void (*scale)(const float* v, float factor, int64_t count, float* out);

  // As quantize and quantize_each with random rounding, limit 127: the hash's input for value i is
  // hash + i * stride.
  void (*randomize)(const float* v, float inverse, uint32_t hash, uint32_t stride, int64_t count,
                    int8_t* out);
  void (*randomize_each)(const float* v, const float* inverse, uint32_t hash, int64_t count,
                         int8_t* out);

  // Sums of v and of v * v in double: over all values, and for each i.
  void (*moments)(const float* v, int64_t count, double* sum, double* squares);
  void (*moments_each)(const float* v, int64_t count, double* sums, double* squares);
  // Numbers of values with |v| above `own` and above `all`: over all values, and for each i.
  void (*tails)(const float* v, float own, float all, int64_t count, int64_t* above_own,
                int64_t* above_all);
  void (*tails_each)(const float* v, const float* own, float all, int64_t count,
                     int32_t* above_own, int32_t* above_all);
};

const FloatLoops& float_loops_scalar();
#if defined(__x86_64__)
const FloatLoops& float_loops_avx2();
const FloatLoops& float_loops_avx512();
#endif

inline const FloatLoops& float_loops() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAVX512VNNI:
      return float_loops_avx512();
    case Capability::kAVX2:
      return float_loops_avx2();
    default:
      break;
  }
#endif
  return float_loops_scalar();
}

}  // namespace daq_mm::cpu
