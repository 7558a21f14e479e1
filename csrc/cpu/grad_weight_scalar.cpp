// grad-weight's inner kernels in plain C++, for processors without AVX2: see
// grad_weight_kernels.h for what they compute and the packed layouts.

#include "cpu/grad_weight_kernels.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGroup = 4;

// Packed byte of channel i, position p, in panels of `width` channels.
inline int64_t packed_at(int64_t i, int64_t p, int64_t width, int64_t panel_bytes) {
  return (i / width) * panel_bytes + (p / kGroup) * width * kGroup + (i % width) * kGroup +
         p % kGroup;
}

void pack_x(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, uint8_t* packed) {
  for (int64_t p = 0; p < count; ++p) {
    const uint8_t* pixel = pixels[p] + offset;
    for (int64_t i = 0; i < kPackBlock; ++i) {
      packed[packed_at(i, p, kXPanel, panel_bytes)] = i < channels ? pixel[i] : 0;
    }
  }
}

void pack_g_panels(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                   int64_t width, int64_t panel_bytes, int8_t* packed, int32_t* sums) {
  for (int64_t p = 0; p < count; ++p) {
    const int8_t* pixel = pixels[p] + offset;
    for (int64_t i = 0; i < kPackBlock; ++i) {
      const int8_t value = i < channels ? pixel[i] : int8_t{0};
      packed[packed_at(i, p, width, panel_bytes)] = value;
      sums[i] += value;
    }
  }
}

void pack_g(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, int8_t* packed, int32_t* sums) {
  pack_g_panels(pixels, count, offset, channels, kGPanel, panel_bytes, packed, sums);
}

void pack_g_block(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                  int8_t* packed, int32_t* sums) {
  pack_g_panels(pixels, count, offset, channels, kPackBlock, 0, packed, sums);
}

void tile(const uint8_t* x, const int8_t* g, int64_t groups, bool accumulate, int32_t* tile,
          const char*, int64_t) {
  if (!accumulate) {
    for (int64_t i = 0; i < kTile; ++i) tile[i] = 0;
  }
  for (int64_t k = 0; k < groups; ++k, x += kXGroupBytes, g += kGGroupBytes) {
    for (int64_t c = 0; c < kGPanel; ++c) {
      const int32_t g0 = g[4 * c], g1 = g[4 * c + 1], g2 = g[4 * c + 2], g3 = g[4 * c + 3];
      int32_t* row = tile + c * kXPanel;
      for (int64_t i = 0; i < kXPanel; ++i) {
        const uint8_t* v = x + 4 * i;
        row[i] += v[0] * g0 + v[1] * g1 + v[2] * g2 + v[3] * g3;
      }
    }
  }
}

void store_tile(const int32_t* tile, int64_t rows, const int32_t* excess, const float* scale,
                float* out, int64_t row_stride, bool) {
  for (int64_t r = 0; r < rows; ++r, tile += kXPanel, out += row_stride) {
    for (int64_t i = 0; i < kXPanel; ++i) {
      out[i] = static_cast<float>(tile[i] - excess[r]) * scale[r];
    }
  }
}

void depthwise(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
               const int8_t* packed_g, int32_t* sums) {
  for (int64_t p = 0; p < count; ++p) {
    const uint8_t* pixel = pixels[p] + offset;
    const int8_t* g = packed_g + (p / kGroup) * kPackBlock * kGroup + p % kGroup;
    for (int64_t i = 0; i < channels; ++i) sums[i] += pixel[i] * g[kGroup * i];
  }
}

}  // namespace

const GradWeightKernels& grad_weight_kernels_scalar() {
  static const GradWeightKernels kernels{kGroup,     pack_x, pack_g,       tile,
                                         store_tile, store_sums_plain, pack_g_block, depthwise};
  return kernels;
}

}  // namespace daq_mm::cpu
