// Forward and grad-input on compute capability 9.0: the product of conv_rows.h by warpgroups.
//
// A block computes 128 positions x 64, 128 or 256 channels. A warp brings the operands, stage by
// stage, by the copy engine; two warpgroups multiply 64 positions each and keep the sums in
// registers. A stage is `span` bytes (64 or 128) of one tap's channels: 128 positions of the
// source, which the engine finds by itself ("im2col"), and the packed weights. Each stage has two arrival
// objects: `full` when its bytes have come, `empty` when all eight warps have multiplied them.
//
// The engine reads zeros outside of the image, not the zero point: positions some of whose taps are
// outside get zero point x the sums of those taps' weights (add_padding()).
#pragma once

#include "cuda/conv_epilogue.h"
#include "cuda/conv_place.h"
#include "cuda/conv_wgmma.h"
#include "cuda/primitives/warpgroup.h"

namespace daq_mm::cuda {

struct WgmmaArguments {
  RowsArguments rows;                // packed: [phase][group][lane][tap][padded depth]
  int spans;                         // a tap's stages
  int axes;                          // that walks have: 2 or 3
  Global<const int32_t> tap_sums;    // forward: [tap][channel] of weights; null without padding
  TensorMap weights;
  TensorMap source[kMostWgmmaPhases];
};

namespace rows {

// The tile, as the epilogue knows tiles: the warps of the two warpgroups 16 rows each.
template <int columns, int span>
struct WgmmaTile {
  static constexpr int kRows = 128;
  static constexpr int kColumns = columns;
  static constexpr int kWarpRows = 16;
  static constexpr int kWarpColumns = columns;
  static constexpr int kWarpsAcross = 1;
  static constexpr int kWarpsDown = 8;
  static constexpr int kThreads = kWarpsDown * kWarp;
  static constexpr int kRowTiles = 1;
  static constexpr int kColumnTiles = columns / 8;

  static constexpr int kAllThreads = kThreads + kWarp;  // with the warp that copies
  static constexpr int kResident = columns == 256 ? 1 : 2;
  static constexpr int kSpan = span;
  static constexpr int kSourceBytes = kRows * span;     // a stage's
  static constexpr int kStageBytes = kSourceBytes + columns * span;
  static constexpr int kStages = (columns == 128 ? 3 : 4) * 128 / span;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kLaunchBytes = kSharedBytes + kStages * 16;
  static_assert(kResident * (kLaunchBytes + 1024) <= 228 * 1024);  // a block's own KB

  int32_t sum[kRowTiles][kColumnTiles][4] = {};

  static DAQ_DEVICE int warp_row() { return warp_index() * kWarpRows; }
  static DAQ_DEVICE int warp_column() { return 0; }
  static DAQ_DEVICE Arrivals full(int stage) { return Arrivals(kSharedBytes + stage * 16); }
  static DAQ_DEVICE Arrivals empty(int stage) { return Arrivals(kSharedBytes + stage * 16 + 8); }
  static DAQ_DEVICE Shared<uint8_t> source(int stage) {
    return Shared<uint8_t>(stage * kStageBytes, kSourceBytes);
  }
  static DAQ_DEVICE Shared<uint8_t> weights(int stage) {
    return Shared<uint8_t>(stage * kStageBytes + kSourceBytes, kColumns * kSpan);
  }
};

// A stage of the ring and the parity of its phase, which changes with each round.
template <int stages>
struct Turn {
  int stage = 0;
  int parity = 0;

  DAQ_DEVICE void advance() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Copies the stages begin..end-1; one thread.
template <typename tile_t>
DAQ_DEVICE void bring(const WgmmaArguments& a, const ConvMap& map, int64_t first_row, int group,
                      int packed_row, int begin, int end) {
  const int counts[3] = {map.axis[0].count, map.axis[1].count, map.axis[2].count};
  const auto first = GridPosition::of(first_row, counts);
  int position[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    position[axis] = first.at[axis] * map.axis[axis].multiplier + lowest_shift(map.axis[axis]);
  }
  const TensorMap& source = a.source[block_y()];
  const int depth = a.spans * tile_t::kSpan;  // of a tap, padded
  auto place = Place::of(begin * tile_t::kSpan, depth, map);
  Turn<tile_t::kStages> turn;
  for (int step = begin; step < end; ++step, turn.advance()) {
    const Arrivals full = tile_t::full(turn.stage);
    tile_t::empty(turn.stage).wait(turn.parity ^ 1);
    full.arrive_and_expect(tile_t::kStageBytes);
    int offset[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      offset[axis] = tap_offset(map.axis[axis], place.tap[axis]);
    }
    const int channel = group * a.rows.depth + place.channel;
    if (a.axes == 2) {
      copy_walk_async<2>(tile_t::source(turn.stage), source, channel, position, first.image, offset,
                         full);
    } else {
      copy_walk_async<3>(tile_t::source(turn.stage), source, channel, position, first.image, offset,
                         full);
    }
    copy_box_async(tile_t::weights(turn.stage), a.weights, step * tile_t::kSpan, packed_row, full);
    place.advance(tile_t::kSpan, depth, map);
  }
}

// Multiplies the stages as they come; all threads of the two warpgroups.
template <typename source_t, typename tile_t>
DAQ_DEVICE void multiply(tile_t& tile, int steps) {
  const int first_byte = warp_index() / 4 * 64 * tile_t::kSpan;  // of the warpgroup's positions
  Turn<tile_t::kStages> turn;
  int previous = 0;
  for (int step = 0; step < steps; ++step, turn.advance()) {
    tile_t::full(turn.stage).wait(turn.parity);
    begin_products(tile.sum[0]);
#pragma unroll
    for (int byte = 0; byte < tile_t::kSpan; byte += 32) {
      multiply_add_async<source_t, int8_t>(
          tile.sum[0],
          matrix_descriptor<tile_t::kSpan>(tile_t::source(turn.stage), first_byte + byte),
          matrix_descriptor<tile_t::kSpan>(tile_t::weights(turn.stage), byte));
    }
    commit_products();
    wait_products<1>();  // those of the stage before, which is free now
    if (step > 0 && lane_index() == 0) tile_t::empty(previous).arrive();
    previous = turn.stage;
  }
  finish_products(tile.sum[0]);
}

// Adds zero point x weights for the taps outside of the image, which were read as zeros.
template <typename tile_t>
DAQ_DEVICE void add_padding(tile_t& tile, const WgmmaArguments& a, const ConvMap& map,
                            int64_t first_row, int64_t first_lane, int group) {
  if (a.tap_sums.is_null()) return;
  const uint32_t zero_point = source_zero_point(a.rows.qparams);
  if (zero_point == 0) return;
  const ConvSizes& s = a.rows.sizes;
  const int counts[3] = {map.axis[0].count, map.axis[1].count, map.axis[2].count};
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int64_t row = first_row + tile_t::warp_row() + lower * 8 + lane_index() / 4;
    if (row >= s.n * map.positions()) continue;
    const auto p = GridPosition::of(row, counts);
#pragma unroll 1
    for (int tap = 0; tap < s.taps(); ++tap) {
      const int taps[3] = {tap / s.kernel[2] / s.kernel[1], tap / s.kernel[2] % s.kernel[1],
                           tap % s.kernel[2]};
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const int at = p.at[axis] * s.stride[axis] + taps[axis] * s.dilation[axis] - s.pad[axis];
        inside = inside && at >= 0 && at < s.in[axis];
      }
      if (inside) continue;
      const int64_t first = tap * s.co + int64_t{1} * group * a.rows.lanes;
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles; ++j) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int64_t lane = first_lane + j * 8 + lane_index() % 4 * 2 + side;
          if (lane >= a.rows.lanes) continue;
          const auto sum = static_cast<uint32_t>(a.tap_sums.load(first + lane));
          int32_t& total = tile.sum[0][j][2 * lower + side];
          total = static_cast<int32_t>(static_cast<uint32_t>(total) + zero_point * sum);
        }
      }
    }
  }
}

template <typename source_t, typename tile_t, bool reduces>
DAQ_DEVICE void run_wgmma_block(const WgmmaArguments& a) {
  constexpr bool kBackward = kBackwardOf<source_t>;
  using epilogue_t = Epilogue<tile_t, kBackward, reduces>;
  const int64_t column_tiles = ceil_div(a.rows.lanes, tile_t::kColumns);
  const int64_t first_row = block_x() / column_tiles * tile_t::kRows;
  const int64_t first_lane = block_x() % column_tiles * tile_t::kColumns;
  const int group = static_cast<int>(block_z() % a.rows.sizes.groups);
  const int split = static_cast<int>(block_z() / a.rows.sizes.groups);
  const ConvMap map = conv_map(a.rows.sizes, kBackward, block_y());
  if (first_row >= a.rows.sizes.n * map.positions()) {  // a phase with fewer positions
    if constexpr (reduces) epilogue_t::store_no_sums(a.rows, first_row, first_lane, group);
    return;
  }

  const int steps = static_cast<int>(map.taps()) * a.spans;
  const int begin = split * a.rows.split_steps < steps ? split * a.rows.split_steps : steps;
  const int end = begin + a.rows.split_steps < steps ? begin + a.rows.split_steps : steps;
  if (thread_index() == 0) {
    for (int stage = 0; stage < tile_t::kStages; ++stage) {
      tile_t::full(stage).set(1);
      tile_t::empty(stage).set(tile_t::kWarpsDown);
    }
    publish_arrivals();
  }
  const bool brings = warp_index() == tile_t::kWarpsDown && lane_index() == 0;
  if (brings && begin < end) {
    prefetch_map(a.weights);
    prefetch_map(a.source[block_y()]);
  }
  barrier();
  if (warp_index() == tile_t::kWarpsDown) {
    if (brings) {
      const int64_t packed_row =
          (block_y() * a.rows.sizes.groups + group) * a.rows.lanes + first_lane;
      bring<tile_t>(a, map, first_row, group, static_cast<int>(packed_row), begin, end);
    }
    warp_barrier();
    for (int i = 0; i < 1 + epilogue_t::kBarriers; ++i) barrier();  // with the others
    return;
  }
  tile_t tile;
  multiply<source_t>(tile, end - begin);
  if (!kBackward && split == 0) add_padding(tile, a, map, first_row, first_lane, group);
  barrier();  // shared memory is free for other use
  epilogue_t(a.rows, map, first_row, first_lane, group, split).run(tile);
}

// Grid: as rows_kernel's.
template <typename source_t, typename tile_t, bool reduces>
DAQ_KERNEL(kWarpgroups ? tile_t::kAllThreads : kWarp, tile_t::kResident)
void rows_wgmma_kernel(DAQ_GRID_CONSTANT const WgmmaArguments a) {
  if constexpr (kWarpgroups) run_wgmma_block<source_t, tile_t, reduces>(a);
}

}  // namespace rows
}  // namespace daq_mm::cuda
