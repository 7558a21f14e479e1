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

#include "cuda/conv_epilogue.h"
#include "cuda/conv_place.h"
#include "cuda/conv_sizes.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {

namespace rows {

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

// Grid: x row tiles x column tiles (columns fastest: neighbours share source rows), y phases,
// z groups x splits.
template <typename source_t, typename tile_t, bool whole_chunks, bool reduces>
DAQ_KERNEL(tile_t::kThreads, tile_t::kResident)
void rows_kernel(RowsArguments a) {
  constexpr bool kBackward = kBackwardOf<source_t>;
  using epilogue_t = Epilogue<tile_t, kBackward, reduces>;
  const int64_t column_tiles = ceil_div(a.lanes, tile_t::kColumns);
  const int64_t first_row = block_x() / column_tiles * tile_t::kRows;
  const int64_t first_lane = block_x() % column_tiles * tile_t::kColumns;
  const int group = static_cast<int>(block_z() % a.sizes.groups);
  const int split = static_cast<int>(block_z() / a.sizes.groups);
  const ConvMap map = conv_map(a.sizes, kBackward, block_y());
  if (first_row >= a.sizes.n * map.positions()) {  // a phase with fewer positions
    if constexpr (reduces) epilogue_t::store_no_sums(a, first_row, first_lane, group);
    return;
  }

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
  epilogue_t(a, map, first_row, first_lane, group, split).run(tile);
}

template <typename source_t, typename tile_t, bool whole_chunks>
void launch_kernel(const RowsArguments& a, const Grid& grid, Stream stream) {
  if constexpr (kBackwardOf<source_t>) {
    if (!a.reduce.sums.is_null()) {
      launch(rows_kernel<source_t, tile_t, whole_chunks, true>, grid, tile_t::kThreads,
             tile_t::kSharedBytes, stream, a);
      return;
    }
  }
  launch(rows_kernel<source_t, tile_t, whole_chunks, false>, grid, tile_t::kThreads,
         tile_t::kSharedBytes, stream, a);
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
    launch_kernel<source_t, tile_t, true>(a, grid, stream);
  } else {
    launch_kernel<source_t, tile_t, false>(a, grid, stream);
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
    default: throw std::logic_error("not a tile of mma.sync");
  }
}

}  // namespace rows
}  // namespace daq_mm::cuda
