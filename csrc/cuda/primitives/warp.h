// Reductions over a warp, made of shuffles. Included by primitives.h.
#pragma once

namespace daq_mm::cuda {

// For reductions: sum_of<double> and so on.
template <typename T>
DAQ_DEVICE T sum_of(T a, T b) {
  return a + b;
}

// combine(a, b) over the 32 lanes, in the same order on every lane; all lanes get the result.
template <typename T, typename F>
DAQ_DEVICE T reduce_warp(T value, F combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    value = combine(value, shuffle_xor(value, mask));
  }
  return value;
}

}  // namespace daq_mm::cuda
