// Packs weights, a warp a row, with the row's sums, by which forward takes the zero point off
// again. The kernel is short and its blocks are few, so latency is what it costs: four words of a
// lane are loaded before the first is stored, and taps are stepped, not divided for.

#include "cuda/conv_pack.h"

#include "cuda/conv_place.h"
#include "cuda/conv_result.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kMostBlocks = 65535;
constexpr int kWord = 4;                     // channels of a lane
constexpr int kPiece = kWarp * kWord;        // channels of a warp
constexpr int kAtOnce = 4;

DAQ_DEVICE void write_pads_here(const Global<const float>& qparams, const Global<uint8_t>& pads) {
  const int t = thread_index();
  if (t >= 64) return;
  const bool outside = t < kChunk && !qparams.is_null();
  pads.store(t, outside ? static_cast<uint8_t>(source_zero_point(qparams)) : uint8_t{0});
}

// Where the weights of one row lie: channel c's of tap t at first + c * stride + t.
struct RowSource {
  int64_t first;
  int64_t stride;
  int depth;
  bool words;  // four channels are one aligned word
};

DAQ_DEVICE uint32_t load_word(const Global<const int8_t>& q_w, const RowSource& row, int tap,
                              int channel) {
  const int64_t at = row.first + channel * row.stride + tap;
  if (row.words) return channel < row.depth ? q_w.load_as<uint32_t>(at) : 0u;
  uint32_t word = 0;
#pragma unroll
  for (int c = 0; c < kWord; ++c) {
    if (channel + c >= row.depth) continue;
    word |= static_cast<uint32_t>(static_cast<uint8_t>(q_w.load(at + c * row.stride))) << (8 * c);
  }
  return word;
}

DAQ_DEVICE void store_word(const PackArguments& a, int64_t row, int t, int channel, uint32_t word) {
  const int64_t to = row * a.row_bytes + int64_t{1} * t * a.tap_bytes + channel;
  if (a.tap_bytes % kWord == 0) {
    if (channel < a.tap_bytes) a.packed.store_as<uint32_t>(to, word);
    return;
  }
#pragma unroll
  for (int c = 0; c < kWord; ++c) {
    if (channel + c < a.tap_bytes) a.packed.store(to + c, static_cast<uint8_t>(word >> (8 * c)));
  }
}

DAQ_DEVICE int kernel_tap(const ConvSizes& sizes, const ConvMap& map, const rows::Place& place) {
  int tap = 0;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisMap& along = map.axis[axis];
    tap = tap * sizes.kernel[axis] + along.first_tap + place.tap[axis] * along.tap_step;
  }
  return tap;
}

DAQ_DEVICE void pack_row(const PackArguments& a, int64_t row, const ConvMap& map,
                         const RowSource& source) {
  const int pieces = ceil_div(a.tap_bytes, kPiece);
  const int taps = static_cast<int>(map.taps()), units = taps * pieces;
  const int channel = lane_index() * kWord;
  // Of a place, the channel counts pieces.
  auto ahead = rows::Place::of(0, pieces, map), place = ahead;
  int t = 0;
  int32_t tap_sum = 0, sum = 0;
  for (int first = 0; first < units; first += kAtOnce) {
    uint32_t words[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      words[j] = 0;
      if (first + j >= units) continue;
      words[j] = load_word(a.q_w, source, kernel_tap(a.sizes, map, ahead),
                           ahead.channel * kPiece + channel);
      ahead.advance(1, pieces, map);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j >= units) continue;
      store_word(a, row, t, place.channel * kPiece + channel, words[j]);
      tap_sum = dot_product(words[j], 0x01010101u, tap_sum);
      place.advance(1, pieces, map);
      if (place.channel != 0) continue;
      if (!a.tap_sums.is_null()) {
        const int32_t all = reduce_warp(tap_sum, sum_of<int32_t>);
        if (lane_index() == 0) a.tap_sums.store(t * a.sizes.co + row, all);
      }
      sum += tap_sum;
      tap_sum = 0;
      ++t;
    }
  }
  const int64_t end = (row + 1) * a.row_bytes;
  for (int64_t i = row * a.row_bytes + int64_t{1} * taps * a.tap_bytes + lane_index(); i < end;
       i += kWarp) {
    a.packed.store(i, uint8_t{0});
  }
  if (a.sums.is_null()) return;
  sum = reduce_warp(sum, sum_of<int32_t>);
  if (lane_index() == 0) a.sums.store(row, sum);
}

DAQ_KERNEL(kThreads, 4)
void pack_kernel(PackArguments a) {
  const int64_t inputs = a.sizes.ci_per_group(), outputs = a.sizes.co_per_group();
  const int64_t lanes = a.backward ? inputs : outputs;
  const int64_t rows = phases(a.sizes, a.backward) * a.sizes.groups * lanes;
  const int64_t taps = a.sizes.taps();
  if (block_x() == 0 && !a.pads.is_null()) write_pads_here(a.qparams, a.pads);
  RowSource source;
  source.depth = static_cast<int>(a.backward ? outputs : inputs);
  source.stride = a.backward ? inputs * taps : taps;
  source.words = source.stride == 1 && source.depth % kWord == 0 && a.q_w.is_aligned(kWord);
  for (int64_t row = block_x() * kWarps + warp_index(); row < rows; row += grid_x() * kWarps) {
    const int64_t lane = row % lanes, group = row / lanes % a.sizes.groups;
    const ConvMap map = conv_map(a.sizes, a.backward, row / lanes / a.sizes.groups);
    source.first = a.backward ? (group * outputs * inputs + lane) * taps
                              : (group * outputs + lane) * inputs * taps;
    pack_row(a, row, map, source);
  }
}

DAQ_KERNEL(64, 1)
void pads_kernel(Global<const float> qparams, Global<uint8_t> pads) {
  write_pads_here(qparams, pads);
}

}  // namespace

void pack_weights(const PackArguments& a, Stream stream) {
  const int64_t lanes = a.backward ? a.sizes.ci : a.sizes.co;
  const int64_t blocks = ceil_div(phases(a.sizes, a.backward) * lanes, int64_t{kWarps});
  launch(pack_kernel, Grid{blocks < kMostBlocks ? blocks : kMostBlocks}, kThreads, 0, stream, a);
}

void write_pads(Global<const float> qparams, Global<uint8_t> pads, Stream stream) {
  launch(pads_kernel, Grid{}, 64, 0, stream, qparams, pads);
}

}  // namespace daq_mm::cuda
