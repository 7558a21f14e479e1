// grad-weight of depthwise convolutions (one input and one output channel a group); called by
// daq_mm::grad_weight.
//
//   dW[c][tap] = float( sum over p of (q_x[p * stride + tap - pad][c] - zp) * q_g[p][c] ) * scale[c]
//
// Channels are independent, so vectors run over channels. For each chunk of positions g is packed
// once (grad_weight_kernels.h) and met by x at every tap; padding counts as the zero point.

#include "cpu/grad_weight.h"

#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>

#include "cpu/grad_weight_kernels.h"
#include "cpu/grad_weight_positions.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kChunk = 256;  // positions whose pixels stay in L1 over the taps

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// int32 sums over one range of positions for one block of channels.
void sum_range(const GradWeightKernels& kernels, const TapPositions& positions,
               const ConvGeometry& geo, const std::vector<uint8_t>& outside,
               const std::vector<uint8_t>& zeros, int64_t channel, int64_t begin, int64_t end,
               int32_t* sums, int32_t* g_sums) {
  const int64_t channels = std::min(geo.co - channel, kPackBlock);
  std::vector<const uint8_t*> x_pixels(kChunk + 8);
  std::vector<const int8_t*> g_pixels(kChunk + 8);
  alignas(64) int8_t packed_g[(kChunk + 8) * kPackBlock * 2];
  for (int64_t p = begin; p < end; p += kChunk) {
    const int64_t stop = std::min(p + kChunk, end);
    for (int64_t tap = 0; tap < geo.taps(); ++tap) {
      int64_t count = positions.list(tap, p, stop, outside.data(), x_pixels.data(),
                                     g_pixels.data());
      for (; count % kernels.group != 0; ++count) {
        x_pixels[count] = outside.data();
        g_pixels[count] = reinterpret_cast<const int8_t*>(zeros.data());
      }
      if (tap == 0) {
        kernels.pack_g_block(g_pixels.data(), count, channel, channels, packed_g, g_sums);
      }
      kernels.depthwise(x_pixels.data(), count, channel, channels, packed_g,
                        sums + tap * kPackBlock);
    }
  }
}

}  // namespace

void grad_weight_depthwise(const uint8_t* q_x, int32_t zero_point, const int8_t* q_g,
                           const ConvGeometry& geo, const GradWeightOutput& output) {
  const auto& kernels = grad_weight_kernels();
  const TapPositions positions(geo, q_x, q_g);
  const std::vector<uint8_t> outside(geo.ci + 64, static_cast<uint8_t>(zero_point));
  const std::vector<uint8_t> zeros(geo.co + 64, 0);
  const int64_t total = geo.grad_weight_contraction();
  const int64_t blocks = ceil_div(geo.co, kPackBlock);
  const int64_t wanted = ceil_div(at::get_num_threads(), blocks);
  const int64_t useful = std::max(total / kChunk, int64_t{1});
  const int64_t ranges = std::max(std::min(wanted, useful), ceil_div(total, kMaxContraction));
  const int64_t block_sums = (geo.taps() + 1) * kPackBlock;  // the last kPackBlock: sums of g
  std::vector<int32_t> sums(blocks * ranges * block_sums);

  at::parallel_for(0, blocks * ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / ranges, range = item % ranges;
      int32_t* own = sums.data() + item * block_sums;
      sum_range(kernels, positions, geo, outside, zeros, block * kPackBlock,
                total * range / ranges, total * (range + 1) / ranges, own,
                own + geo.taps() * kPackBlock);
    }
  });
  for (int64_t c = 0; c < geo.co; ++c) {
    const int32_t* own = sums.data() + c / kPackBlock * ranges * block_sums + c % kPackBlock;
    for (int64_t tap = 0; tap < geo.taps(); ++tap) {
      int64_t sum = 0;
      for (int64_t range = 0; range < ranges; ++range) {
        const int32_t* part = own + range * block_sums;
        sum += int64_t{part[tap * kPackBlock]} -
               int64_t{zero_point} * part[geo.taps() * kPackBlock];
      }
      output.store(c, 0, tap, 1, &sum);
    }
  }
}

}  // namespace daq_mm::cpu
