// Depthwise convolutions (groups = Ci = Co): a channel meets only itself, so there is no matrix
// product; a kernel runs along channels. Forward and grad-input use gemm_driver.h's loop with
// these kernels and panels of 64 channels:
//   bytes  int8 [tap quad][4 vectors][16 lanes][4 taps], lanes in the order that byte and word
//          interleaving of four rows gives (vpdpbusd; AVX512-VNNI)
//   words  int16 [tap][64 lanes] (AVX2 and scalar)
// Nine taps count as a 3 x 3 kernel: each quad holds the three taps of a column and a zero, so that
// a column that two neighbouring pixels share is read and interleaved once.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/gemm_tiles.h"
#include "cpu/pack.h"
#include "conv_geometry.h"

namespace daq_mm::cpu {

constexpr int64_t kDepthwiseLanes = 64;

// Whether the geometry has depthwise kernels; with more taps int32 sums could overflow.
inline bool uses_depthwise(const ConvGeometry& g) { return g.is_depthwise() && g.taps() <= 4096; }

// w int8 (C, 1, *kernel). `first_taps`: the places at which phases begin, then the number of taps.
PackedWeights pack_depthwise(const int8_t* w, int64_t channels,
                             const std::vector<int64_t>& tap_order,
                             const std::vector<int64_t>& first_taps, Capability capability);

// Bytes from a panel's start to the tap at which a phase begins.
inline int64_t depthwise_phase_offset(Capability c, int64_t first_tap) {
  // A phase begins a new quad: at most one quad a tap, so quads are placed at the tap's own place.
  return first_tap * kDepthwiseLanes * (uses_bytes(c) ? 4 : 2);
}

BlockKernel depthwise_kernel_avx512(int64_t taps, OutKind out, bool is_signed);
BlockKernel depthwise_kernel_avx2(OutKind out);
BlockKernel depthwise_kernel_scalar(OutKind out);

inline BlockKernel depthwise_kernel(Capability c, int64_t taps, OutKind out, bool is_signed) {
  switch (c) {
#if defined(__x86_64__)
    case Capability::kAVX512VNNI:
      return depthwise_kernel_avx512(taps, out, is_signed);
    case Capability::kAVX2:
      return depthwise_kernel_avx2(out);
#endif
    default:
      return depthwise_kernel_scalar(out);
  }
}

}  // namespace daq_mm::cpu
