// Random rounding to -127..127 by a hash of the value's place; see float_loops.h for the formula and
// daq_mm/ops/reference.py (uniform_from_index) for the hash. Include this after a vectors_*.h, within
// its target region.
#pragma once

#include "cpu/float_loops.h"

namespace daq_mm::cpu {
namespace {

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

}  // namespace
}  // namespace daq_mm::cpu
