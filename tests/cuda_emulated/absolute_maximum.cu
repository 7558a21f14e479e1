// result = max |x[i]|: each thread over a stride of x, a warp by shuffles, a block through shared
// memory, blocks by an atomic. The bits of floats without sign are ordered as unsigned integers.

#include "absolute_maximum.h"

#include <algorithm>

#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

DAQ_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

DAQ_KERNEL(kThreads, 2)
void absolute_maximum_kernel(Global<const float> x, int64_t count, Global<uint32_t> result) {
  const Shared<uint32_t> of_warp(0, kWarps);
  uint32_t maximum = 0;
  const int64_t step = grid_x() * kThreads;
  for (int64_t i = block_x() * kThreads + thread_index(); i < count; i += step) {
    maximum = larger(maximum, bits_of(x.load(i)) & 0x7fffffffu);
  }
  maximum = reduce_warp(maximum, larger);
  if (lane_index() == 0) of_warp.store(warp_index(), maximum);
  barrier();
  if (warp_index() == 0) {
    maximum = lane_index() < kWarps ? of_warp.load(lane_index()) : 0;
    maximum = reduce_warp(maximum, larger);
    if (lane_index() == 0) atomic_max(result, 0, maximum);
  }
}

}  // namespace

void absolute_maximum(const float* x, int64_t count, uint32_t* result_bits, Stream stream) {
  clear(result_bits, sizeof(uint32_t), stream);
  if (count == 0) return;
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 1024);
  launch(absolute_maximum_kernel, Grid{blocks}, kThreads, kWarps * sizeof(uint32_t), stream,
         Global<const float>(x, count), count, Global<uint32_t>(result_bits, 1));
}

}  // namespace daq_mm::cuda
