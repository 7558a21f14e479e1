// Forward and grad-input as a matrix product on tensor cores: rows are result positions, columns
// result channels of a group, the contraction runs over taps of the kernel and channels of the
// source. Included by conv_forward.cu and conv_grad_input.cu.
//
//   sum[m][lane] = sum over k = tap * depth + channel of source[m, tap][channel] * packed[lane][k]
//
// No matrix of positions is made: each chunk of 16 k of a row is copied from where it lies in the
// channels-last source, or from `pads` (the zero point) where the tap falls outside. That needs a
// depth that is a multiple of 16; otherwise chunks are gathered by 4 or 1 bytes. The packed weights
// (conv_pack.cu) are padded by zeros to whole steps, so what the source holds there is of no effect.
#pragma once

#include <type_traits>

#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {

struct RowsArguments {
  ConvSizes sizes;
  int depth;                // source channels of a group
  int lanes;                // result channels of a group
  int64_t packed_row;       // bytes
  int splits;
  int split_steps;
  int gather;               // bytes at a time where chunks cannot be copied: 4 or 1
  Global<const uint8_t> source;
  Global<const uint8_t> packed;      // [phase][group][lane][packed_row]
  Global<const uint8_t> pads;        // 16 times the value outside of the image
  Global<const int32_t> sums;        // forward: of each packed row
  Global<const float> qparams;       // forward: step and zero point of the source
  Global<const float> step;
  bool step_by_channel;
  Global<const float> bias;          // or null
  Results results;
  Global<int32_t> partial;           // [split][position][channel], if splits > 1
  Global<float> statistics;          // [row tile][4][channel], or null
};

namespace rows {

// Signed sources are gradients: grad-input. Unsigned ones are activations: forward.
template <typename source_t>
constexpr bool kBackwardOf = std::is_signed_v<source_t>;

template <bool backward>
DAQ_DEVICE const int* source_size(const ConvSizes& s) { return backward ? s.out : s.in; }
template <bool backward>
DAQ_DEVICE const int* result_size(const ConvSizes& s) { return backward ? s.in : s.out; }

// Which source chunk meets a k: the tap by axis, the channel within the group.
struct Place {
  int tap[3];
  int channel;

  static DAQ_DEVICE Place of(int k, int depth, const ConvMap& map) {
    if (map.taps() == 0) return {{0, 0, 0}, 0};  // nothing is met
    const int tap = k / depth;
    return {{tap / map.axis[2].taps / map.axis[1].taps, tap / map.axis[2].taps % map.axis[1].taps,
             tap % map.axis[2].taps},
            k % depth};
  }

  DAQ_DEVICE void advance(int count, int depth, const ConvMap& map) {
    channel += count;
    while (channel >= depth) {
      channel -= depth;
      if (++tap[2] == map.axis[2].taps) {
        tap[2] = 0;
        if (++tap[1] == map.axis[1].taps) {
          tap[1] = 0;
          ++tap[0];
        }
      }
    }
  }
};

// Copies a block's rows of the source, step by step. Addresses are the row's image (64 bits) plus
// positions within it (32 bits), so that the pipeline's loop has little to compute.
template <typename tile_t, bool backward, bool whole_chunks>
class SourceRows {
 public:
  static constexpr int kRowsAPass = tile_t::kThreads / 4;  // four chunks a row and step
  static constexpr int kRows = tile_t::kRows / kRowsAPass;

  DAQ_DEVICE SourceRows(const RowsArguments& arguments, const ConvMap& map, int64_t first_row,
                        int group, int step)
      : a_(arguments), map_(map), channels_(arguments.depth * static_cast<int>(a_.sizes.groups)) {
    const int64_t count = a_.sizes.n * map.positions();
    const int counts[3] = {map.axis[0].count, map.axis[1].count, map.axis[2].count};
    const int* size = source_size<backward>(a_.sizes);
    const int64_t image_values = int64_t{1} * size[0] * size[1] * size[2] * channels_;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t m = first_row + thread_index() / 4 + i * kRowsAPass;
      const auto p = GridPosition::of(m < count ? m : 0, counts);
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const AxisMap& along = map.axis[axis];
        origin_[i][axis] = p.at[axis] * along.multiplier + along.shift;
      }
      if (m >= count) origin_[i][0] = kNowhere;
      image_[i] = p.image * image_values + group * a_.depth;
    }
    place_ = Place::of(step * kStep + thread_index() % 4 * kChunk, a_.depth, map);
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = thread_index() / 4 + i * kRowsAPass;
      const int to = swizzled<kStep>(row, chunk);
      if constexpr (whole_chunks) {
        const int64_t at = address(i, place_);
        copy16_async(stage, to, at >= 0 ? a_.source : a_.pads, at >= 0 ? at : 0);
      } else if (a_.gather == 4) {
        stage.store_as(to, gathered<uint32_t>(i));
      } else {
        stage.store_as(to, gathered<uint8_t>(i));
      }
    }
    place_.advance(kStep, a_.depth, map_);
  }

 private:
  static constexpr int kNowhere = -(1 << 30);  // an origin from which no tap gets inside

  // Of a place's first byte in the source, for row i; -1 outside.
  DAQ_DEVICE int64_t address(int i, const Place& place) const {
    const int* size = source_size<backward>(a_.sizes);
    int position = 0;  // may wrap outside, where it is not used
    bool inside = place.tap[0] < map_.axis[0].taps;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int at = origin_[i][axis] + place.tap[axis] * map_.axis[axis].shift_step;
      inside = inside && static_cast<unsigned>(at) < static_cast<unsigned>(size[axis]);
      position = static_cast<int>(static_cast<unsigned>(position) * size[axis] + at);
    }
    return inside ? image_[i] + place.channel + int64_t{1} * position * channels_ : -1;
  }

  template <typename unit_t>
  DAQ_DEVICE Bytes16 gathered(int i) const {
    constexpr int kUnit = sizeof(unit_t);
    const auto outside = a_.pads.load_as<unit_t>(0);
    Place place = place_;
    Bytes16 chunk = {};
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t bits = 0;
#pragma unroll
      for (int unit = 0; unit < 4 / kUnit; ++unit) {
        const int64_t at = address(i, place);
        const unit_t value = at >= 0 ? a_.source.load_as<unit_t>(at) : outside;
        bits |= static_cast<uint32_t>(value) << (8 * kUnit * unit);
        place.advance(kUnit, a_.depth, map_);
      }
      chunk = {{chunk.word[1], chunk.word[2], chunk.word[3], bits}};
    }
    return chunk;
  }

  const RowsArguments& a_;
  const ConvMap& map_;
  int channels_;
  Place place_;
  int origin_[kRows][3];
  int64_t image_[kRows];  // the group's first channel of the image's first position
};

// Copies a block's rows of packed weights, step by step.
template <typename tile_t>
class WeightRows {
 public:
  static constexpr int kRowsAPass = tile_t::kThreads / 4;
  static constexpr int kRows = tile_t::kColumns / kRowsAPass;
  static_assert(kRows * kRowsAPass == tile_t::kColumns);

  DAQ_DEVICE WeightRows(const RowsArguments& arguments, int64_t first_packed, int64_t first_lane,
                        int step)
      : a_(arguments), at_(first_packed + step * kStep + thread_index() % 4 * kChunk) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t lane = first_lane + thread_index() / 4 + i * kRowsAPass;
      // Lanes beyond the last one repeat it; their sums are not stored.
      row_[i] = static_cast<int>((lane < a_.lanes ? lane : a_.lanes - 1) * a_.packed_row);
    }
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = thread_index() / 4 + i * kRowsAPass;
      copy16_async(stage, swizzled<kStep>(row, thread_index() % 4), a_.packed, at_ + row_[i]);
    }
    at_ += kStep;
  }

 private:
  const RowsArguments& a_;
  int64_t at_;
  int row_[kRows];
};

// Adds the products of one stage.
template <typename source_t, typename tile_t>
DAQ_DEVICE void multiply_stage(tile_t& tile, int stage) {
  const Shared<uint8_t> left(stage, tile_t::kRowBytes);
  const Shared<uint8_t> right(stage + tile_t::kRowBytes, tile_t::kColumns * kStep);
  const int matrix = lane_index() / 8, line = lane_index() % 8;
#pragma unroll
  for (int half = 0; half < kStep / 32; ++half) {
    uint32_t a[tile_t::kRowTiles][4];
    uint32_t b[tile_t::kColumnTiles / 2][4];  // of two column tiles
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
      const int row = tile_t::warp_row() + i * 16 + matrix % 2 * 8 + line;
      load_matrices(a[i], left, swizzled<kStep>(row, half * 2 + matrix / 2));
    }
#pragma unroll
    for (int j = 0; j < tile_t::kColumnTiles / 2; ++j) {
      const int row = tile_t::warp_column() + j * 16 + matrix / 2 * 8 + line;
      load_matrices(b[j], right, swizzled<kStep>(row, half * 2 + matrix % 2));
    }
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles; ++j) {
        const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        multiply_add<source_t, int8_t>(tile.sum[i][j], a[i], pair);
      }
    }
  }
}

// The epilogue: sums to stored bits, statistics, and results through shared memory so that rows go
// to memory in pieces of 16 bytes.
template <typename tile_t, bool backward>
class Epilogue {
 public:
  static constexpr int kPieceRow = tile_t::kWarpColumns * 4 + kChunk;  // bytes; off the banks
  static constexpr int kWarps = tile_t::kThreads / kWarp;
  static constexpr int kStatisticsAt = kWarps * 16 * kPieceRow;
  static constexpr int kPositionsAt =
      kStatisticsAt + tile_t::kWarpsDown * tile_t::kColumns * 4 * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kPositionsAt + tile_t::kRows * static_cast<int>(sizeof(int64_t));
  static_assert(kBytes <= tile_t::kSharedBytes);

  DAQ_DEVICE Epilogue(const RowsArguments& arguments, const ConvMap& map, int64_t first_row,
                      int64_t first_lane, int64_t group, int64_t split)
      : a_(arguments), map_(map), first_row_(first_row), first_lane_(first_lane), group_(group),
        split_(split), raw_(arguments.splits > 1),
        channels_(int64_t{1} * arguments.lanes * arguments.sizes.groups),
        rows_(arguments.sizes.n * map.positions()) {}

  DAQ_DEVICE void run(tile_t& tile) const {
    find_positions();
    finish(tile);
    barrier();
    if (!raw_ && !a_.statistics.is_null()) store_statistics();
    store(tile);
  }

 private:
  // Where row r's results lie, counted in positions of the result; -1 for none.
  DAQ_DEVICE void find_positions() const {
    const Shared<int64_t> positions(kPositionsAt, tile_t::kRows);
    const int* size = result_size<backward>(a_.sizes);
    const int counts[3] = {map_.axis[0].count, map_.axis[1].count, map_.axis[2].count};
    for (int r = thread_index(); r < tile_t::kRows; r += tile_t::kThreads) {
      int64_t position = -1;
      if (first_row_ + r < rows_) {
        const auto p = GridPosition::of(first_row_ + r, counts);
        position = p.image;
        for (int axis = 0; axis < 3; ++axis) {
          const AxisMap& along = map_.axis[axis];
          position = position * size[axis] + along.start + p.at[axis] * along.step;
        }
      }
      positions.store(r, position);
    }
  }

  // Sums become bits in place; statistics of the bits by column go to shared memory.
  DAQ_DEVICE void finish(tile_t& tile) const {
    if (raw_) return;
    const bool statistics = !a_.statistics.is_null();
    const Shared<float> shared(kStatisticsAt, tile_t::kWarpsDown * tile_t::kColumns * 4);
    constexpr bool offset = !backward;
    const uint32_t zero_point = offset ? static_cast<uint32_t>(a_.qparams.load(1)) : 0u;
    const float source_step = offset ? a_.qparams.load(0) : 1.0f;
    const bool has_bias = !a_.bias.is_null();
#pragma unroll
    for (int j = 0; j < tile_t::kColumnTiles; ++j) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = tile_t::warp_column() + j * 8 + lane_index() % 4 * 2 + side;
        const bool used = first_lane_ + column < a_.lanes;
        const int64_t channel = group_ * a_.lanes + (used ? first_lane_ + column : 0);
        const float step = a_.step.load(a_.step_by_channel ? channel : 0);
        const float scale = offset ? multiply(source_step, step) : step;
        const float bias = has_bias ? a_.bias.load(channel) : 0.0f;
        const uint32_t correction =
            offset ? zero_point * static_cast<uint32_t>(a_.sums.load(channel)) : 0u;
        Statistics of_column;
#pragma unroll
        for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            int32_t& sum = tile.sum[i][j][2 * lower + side];
            const auto exact = static_cast<int32_t>(static_cast<uint32_t>(sum) - correction);
            const uint32_t bits = result_bits(exact, scale, has_bias, bias, a_.results.type);
            sum = static_cast<int32_t>(bits);
            const int row = tile_t::warp_row() + i * 16 + lower * 8 + lane_index() / 4;
            if (statistics && first_row_ + row < rows_) {
              of_column.include(result_value(bits, a_.results.type));
            }
          }
        }
        if (!statistics) continue;
#pragma unroll
        for (int mask = 4; mask < kWarp; mask *= 2) {
          of_column.include(of_column.of_lane_across(mask));
        }
        if (lane_index() < 4) {
          const int down = warp_index() / tile_t::kWarpsAcross;
          of_column.store(shared, (down * tile_t::kColumns + column) * 4, 1);
        }
      }
    }
  }

  DAQ_DEVICE void store_statistics() const {
    const Shared<float> shared(kStatisticsAt, tile_t::kWarpsDown * tile_t::kColumns * 4);
    for (int column = thread_index(); column < tile_t::kColumns; column += tile_t::kThreads) {
      if (first_lane_ + column >= a_.lanes) continue;
      auto total = Statistics::load(shared, column * 4, 1);
      for (int down = 1; down < tile_t::kWarpsDown; ++down) {
        total.include(Statistics::load(shared, (down * tile_t::kColumns + column) * 4, 1));
      }
      const int64_t channel = group_ * a_.lanes + first_lane_ + column;
      total.store(a_.statistics, first_row_ / tile_t::kRows * 4 * channels_ + channel, channels_);
    }
  }

  DAQ_DEVICE void store(const tile_t& tile) const {
    const bool wide = raw_ || a_.results.wide();
    const Shared<uint8_t> piece(warp_index() * 16 * kPieceRow, 16 * kPieceRow);
    const int group_row = lane_index() / 4, member = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles; ++j) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const auto left = static_cast<uint32_t>(tile.sum[i][j][2 * lower]);
          const auto right = static_cast<uint32_t>(tile.sum[i][j][2 * lower + 1]);
          const int row = (group_row + 8 * lower) * kPieceRow;
          const int column = j * 8 + member * 2;
          if (wide) {
            piece.store_as(row + column * 4, Bytes8{{left, right}});
          } else {
            piece.store_as(row + column * 2, left | right << 16);
          }
        }
      }
      warp_barrier();
      store_piece(piece, tile_t::warp_row() + i * 16, wide ? 4 : 2);
      warp_barrier();
    }
  }

  // 16 rows of a warp's columns, from shared memory to the results.
  DAQ_DEVICE void store_piece(const Shared<uint8_t>& piece, int first, int size) const {
    const Shared<int64_t> positions(kPositionsAt, tile_t::kRows);
    const int per_row = tile_t::kWarpColumns * size / kChunk;
    const int per_chunk = kChunk / size;
    for (int c = lane_index(); c < 16 * per_row; c += kWarp) {
      const int row = c / per_row;
      const int64_t lane = first_lane_ + tile_t::warp_column() + c % per_row * per_chunk;
      const int64_t position = positions.load(first + row);
      if (position < 0 || lane >= a_.lanes) continue;
      const auto chunk = piece.load_as<Bytes16>(row * kPieceRow + c % per_row * kChunk);
      const int64_t at = position * channels_ + group_ * a_.lanes + lane;
      const int count = a_.lanes - lane < per_chunk ? static_cast<int>(a_.lanes - lane) : per_chunk;
      if (raw_) {
        store_partial(at, chunk, count);
      } else if (a_.results.aligned) {
        a_.results.bytes.store_as(at * size, chunk);
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (e >= count) continue;
          const uint32_t bits = size == 4 ? chunk.word[e % 4] : chunk.word[e / 2] >> (e % 2 * 16);
          a_.results.store(at + e, bits);
        }
      }
    }
  }

  DAQ_DEVICE void store_partial(int64_t at, const Bytes16& chunk, int count) const {
    const int* size = result_size<backward>(a_.sizes);
    const int64_t first = split_ * a_.sizes.n * size[0] * size[1] * size[2] * channels_ + at;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (e < count) a_.partial.store(first + e, static_cast<int32_t>(chunk.word[e]));
    }
  }

  const RowsArguments& a_;
  const ConvMap& map_;
  int64_t first_row_;
  int64_t first_lane_;
  int64_t group_;
  int64_t split_;
  bool raw_;
  int64_t channels_;
  int64_t rows_;
};

// Grid: x row tiles x column tiles (columns fastest: neighbours share source rows), y phases,
// z groups x splits.
template <typename source_t, typename tile_t, bool whole_chunks>
DAQ_KERNEL(tile_t::kThreads, tile_t::kResident)
void rows_kernel(RowsArguments a) {
  const int64_t column_tiles = ceil_div(a.lanes, tile_t::kColumns);
  const int64_t first_row = block_x() / column_tiles * tile_t::kRows;
  const int64_t first_lane = block_x() % column_tiles * tile_t::kColumns;
  const int group = static_cast<int>(block_z() % a.sizes.groups);
  const int split = static_cast<int>(block_z() / a.sizes.groups);
  constexpr bool kBackward = kBackwardOf<source_t>;
  const ConvMap map = conv_map(a.sizes, kBackward, block_y());
  if (first_row >= a.sizes.n * map.positions()) return;  // a phase with fewer positions

  const int steps = ceil_div(static_cast<int>(map.taps()) * a.depth, kStep);
  const int begin = split * a.split_steps < steps ? split * a.split_steps : steps;
  const int end = begin + a.split_steps < steps ? begin + a.split_steps : steps;
  const int64_t first_packed = (block_y() * a.sizes.groups + group) * a.lanes * a.packed_row;
  SourceRows<tile_t, kBackward, whole_chunks> source(a, map, first_row, group, begin);
  WeightRows<tile_t> weights(a, first_packed, first_lane, begin);
  tile_t tile;
  run_pipeline<tile_t::kStageBytes>(
      begin, end,
      [&](int stage) {
        source.load(Shared<uint8_t>(stage, tile_t::kRowBytes));
        weights.load(Shared<uint8_t>(stage + tile_t::kRowBytes, tile_t::kColumns * kStep));
      },
      [&](int stage) { multiply_stage<source_t>(tile, stage); });
  Epilogue<tile_t, kBackward>(a, map, first_row, first_lane, group, split).run(tile);
}

template <typename source_t, typename tile_t>
void launch_tile(const RowsArguments& a, bool whole_chunks, Stream stream) {
  // Phase 0 has the most positions.
  constexpr bool kBackward = kBackwardOf<source_t>;
  const int64_t rows = a.sizes.n * conv_map(a.sizes, kBackward, 0).positions();
  const Grid grid{ceil_div(rows, int64_t{tile_t::kRows}) *
                      ceil_div(a.lanes, tile_t::kColumns),
                  phases(a.sizes, kBackward), a.sizes.groups * a.splits};
  if (whole_chunks) {
    launch(rows_kernel<source_t, tile_t, true>, grid, tile_t::kThreads, tile_t::kSharedBytes,
           stream, a);
  } else {
    launch(rows_kernel<source_t, tile_t, false>, grid, tile_t::kThreads, tile_t::kSharedBytes,
           stream, a);
  }
}

// How many bytes of a chunk lie side by side at least, where it is not whole.
inline int gather_bytes(int depth, const Global<const uint8_t>& source) {
  return depth % 4 == 0 && source.is_aligned(4) ? 4 : 1;
}

template <typename source_t>
void launch_rows(const RowsArguments& a, TileShape shape, Stream stream) {
  const bool whole = a.depth % kChunk == 0 && a.source.is_aligned(kChunk);
  switch (shape) {
    case TileShape::k128x128: return launch_tile<source_t, Tile128x128>(a, whole, stream);
    case TileShape::k128x64: return launch_tile<source_t, Tile128x64>(a, whole, stream);
    case TileShape::k64x64: return launch_tile<source_t, Tile64x64>(a, whole, stream);
  }
}

}  // namespace rows
}  // namespace daq_mm::cuda
