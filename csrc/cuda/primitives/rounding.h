// Float types narrower than float32, as 16-bit words. Included by primitives.h.
#pragma once

namespace daq_mm::cuda {

DAQ_DEVICE bool is_nan(float a) { return (bits_of(a) & 0x7fffffffu) > 0x7f800000u; }

DAQ_DEVICE float float_from_bfloat16(uint16_t a) {
  return float_of_bits(static_cast<uint32_t>(a) << 16);
}

// To the nearest, ties to even; NaN stays one, of no certain bits.
DAQ_DEVICE uint16_t bfloat16_from_float(float a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;  // a conversion of two, which has four times the rate of one
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(a));
  return static_cast<uint16_t>(pair);
#else
  const uint32_t bits = bits_of(a);
  if (is_nan(a)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

}  // namespace daq_mm::cuda
