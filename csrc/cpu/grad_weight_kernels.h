// Inner kernels of grad-weight, one table for each instruction set; called by daq_mm::grad_weight
// through grad_weight.cpp.
//
//   tile[c][i] = sum over positions p of x[p][i] * g[p][c]        x uint8, g int8, exact in int32
//
// Both operands are packed so that the values of `group` neighbouring positions of one channel lie
// together: one multiply-add instruction then contracts over the group. A panel holds all groups of
// a few channels, so that a tile reads two contiguous streams:
//
//   x panel  [groups][32 channels][group]     128 bytes a group, whatever the instruction set
//   g panel  [groups][ 8 channels][group]      32 bytes a group
//
// group is 4 with bytes (AVX512-VNNI, scalar) and 2 with 16-bit words (AVX2, whose byte product
// saturates).
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace daq_mm::cpu {

constexpr int64_t kXPanel = 32;        // channels of an x panel
constexpr int64_t kGPanel = 8;         // channels of a g panel
constexpr int64_t kPackBlock = 64;     // channels packed by one call: a cache line of bytes
constexpr int64_t kXGroupBytes = 128;  // one group of an x panel
constexpr int64_t kGGroupBytes = 32;   // one group of a g panel
constexpr int64_t kTile = kXPanel * kGPanel;

// Longest contraction whose sum of uint8 * int8 surely fits in int32, rounded down to a round
// number: 65,536 * 255 * 127 < 2**31.
constexpr int64_t kMaxContraction = 65536;

struct GradWeightKernels {
  int64_t group;

  // Pack up to kPackBlock channels of `count` positions (a multiple of group) into panels that lie
  // `panel_bytes` apart. pixels[p] + offset is the first channel; nothing beyond `channels` is
  // read, the panels' other channels become 0. The whole block's panels are written.
  void (*pack_x)(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                 int64_t panel_bytes, uint8_t* packed);
  // Likewise for g; adds each channel's sum over the positions to sums[kPackBlock].
  void (*pack_g)(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                 int64_t panel_bytes, int8_t* packed, int32_t* sums);
  // tile[8][32] = (accumulate ? tile : 0) + the sum over the panels' groups. On the way it fetches
  // one cache line for each group, from `ahead` on and ahead_step bytes apart, for a later call.
  void (*tile)(const uint8_t* x, const int8_t* g, int64_t groups, bool accumulate, int32_t* tile,
               const char* ahead, int64_t ahead_step);
  // out[r * row_stride + i] = float(tile[r][i] - excess[r]) * scale[r] for all 32 channels of the
  // first `rows` rows; past the caches if `stream`, which needs whole cache lines.
  void (*store)(const int32_t* tile, int64_t rows, const int32_t* excess, const float* scale,
                float* out, int64_t row_stride, bool stream);
  // The same of the sums over `ranges` tiles, `range_stride` apart, in int64:
  // out[r * row_stride + i] = float(sum of tile[r][i] - excess[r]) * scale[r].
  void (*store_sums)(const int32_t* tile, int64_t range_stride, int64_t ranges, int64_t rows,
                     const int64_t* excess, const float* scale, float* out, int64_t row_stride);

  // Depthwise: g packed as [groups][kPackBlock][group], and
  // sums[i] += sum over p of x[p][i] * g[p][i] for the block's channels.
  void (*pack_g_block)(const int8_t* const* pixels, int64_t count, int64_t offset,
                       int64_t channels, int8_t* packed, int32_t* sums);
  void (*depthwise)(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                    const int8_t* packed_g, int32_t* sums);
};

// store_sums where there are no instructions for it.
inline void store_sums_plain(const int32_t* tile, int64_t range_stride, int64_t ranges,
                             int64_t rows, const int64_t* excess, const float* scale, float* out,
                             int64_t row_stride) {
  for (int64_t r = 0; r < rows; ++r, tile += kXPanel, out += row_stride) {
    for (int64_t i = 0; i < kXPanel; ++i) {
      int64_t sum = -excess[r];
      for (int64_t range = 0; range < ranges; ++range) sum += tile[range * range_stride + i];
      out[i] = static_cast<float>(sum) * scale[r];
    }
  }
}

const GradWeightKernels& grad_weight_kernels_scalar();
#if defined(__x86_64__)
const GradWeightKernels& grad_weight_kernels_avx2();
const GradWeightKernels& grad_weight_kernels_avx512();
#endif

inline const GradWeightKernels& grad_weight_kernels() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAVX512VNNI:
      return grad_weight_kernels_avx512();
    case Capability::kAVX2:
      return grad_weight_kernels_avx2();
    default:
      break;
  }
#endif
  return grad_weight_kernels_scalar();
}

}  // namespace daq_mm::cpu
