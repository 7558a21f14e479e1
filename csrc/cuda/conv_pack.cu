// packed[phase][group][lane][k = tap * depth + channel] = q_w[output][input][tap of the phase]; a
// warp a row, with the row's sum, by which forward takes the zero point off again.

#include "cuda/conv_pack.h"

#include "cuda/conv_result.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kMostBlocks = 65535;

DAQ_DEVICE void write_pads_here(const Global<const float>& qparams, const Global<uint8_t>& pads) {
  const int t = thread_index();
  if (t >= 64) return;
  const bool outside = t < kChunk && !qparams.is_null();
  pads.store(t, outside ? static_cast<uint8_t>(source_zero_point(qparams)) : uint8_t{0});
}

DAQ_KERNEL(kThreads, 2)
void pack_kernel(Global<const int8_t> q_w, Global<const float> qparams, ConvSizes sizes,
                 bool backward, int64_t row_bytes, Global<uint8_t> packed, Global<int32_t> sums,
                 Global<uint8_t> pads) {
  const int64_t inputs = sizes.ci_per_group(), outputs = sizes.co_per_group();
  const int64_t depth = backward ? outputs : inputs;
  const int64_t lanes = backward ? inputs : outputs;
  const int64_t rows = phases(sizes, backward) * sizes.groups * lanes;
  const int64_t taps = sizes.taps();
  if (block_x() == 0) write_pads_here(qparams, pads);
  for (int64_t row = block_x() * kWarps + warp_index(); row < rows; row += grid_x() * kWarps) {
    const int64_t lane = row % lanes, group = row / lanes % sizes.groups;
    const ConvMap map = conv_map(sizes, backward, row / lanes / sizes.groups);
    const int64_t length = map.taps() * depth;
    int32_t sum = 0;
    for (int64_t k = lane_index(); k < row_bytes; k += kWarp) {
      int8_t value = 0;
      if (k < length) {
        const int64_t channel = k % depth;
        int64_t rest = k / depth;
        int64_t tap = 0, scale = 1;
        for (int axis = 2; axis >= 0; --axis) {
          const AxisMap& along = map.axis[axis];
          tap += (along.first_tap + rest % along.taps * along.tap_step) * scale;
          rest /= along.taps;
          scale *= sizes.kernel[axis];
        }
        const int64_t output = group * outputs + (backward ? channel : lane);
        const int64_t input = backward ? lane : channel;
        value = q_w.load((output * inputs + input) * taps + tap);
      }
      packed.store(row * row_bytes + k, static_cast<uint8_t>(value));
      sum += value;
    }
    if (sums.is_null()) continue;
    sum = reduce_warp(sum, sum_of<int32_t>);
    if (lane_index() == 0) sums.store(row, sum);
  }
}

DAQ_KERNEL(64, 1)
void pads_kernel(Global<const float> qparams, Global<uint8_t> pads) {
  write_pads_here(qparams, pads);
}

}  // namespace

void pack_weights(Global<const int8_t> q_w, Global<const float> qparams, const ConvSizes& sizes,
                  bool backward, int64_t row_bytes, Global<uint8_t> packed, Global<int32_t> sums,
                  Global<uint8_t> pads, Stream stream) {
  const int64_t lanes = backward ? sizes.ci : sizes.co;
  const int64_t blocks = ceil_div(phases(sizes, backward) * lanes, int64_t{kWarps});
  launch(pack_kernel, Grid{blocks < kMostBlocks ? blocks : kMostBlocks}, kThreads, 0, stream, q_w,
         qparams, sizes, backward, row_bytes, packed, sums, pads);
}

void write_pads(Global<const float> qparams, Global<uint8_t> pads, Stream stream) {
  launch(pads_kernel, Grid{}, 64, 0, stream, qparams, pads);
}

}  // namespace daq_mm::cuda
