// What the tile kernels of forward and grad-input share: their arguments, and the epilogue from a
// tile's sums to results. Included by conv_rows.h (mma.sync) and conv_rows_wgmma.h.
#pragma once

#include <type_traits>

#include "cuda/conv_reduce.h"
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
  ReduceArguments reduce;            // grad-input; without splits, and results that are `aligned`
};

namespace rows {

// Signed sources are gradients: grad-input. Unsigned ones are activations: forward.
template <typename source_t>
constexpr bool kBackwardOf = std::is_signed_v<source_t>;

template <bool backward>
DAQ_DEVICE const int* source_size(const ConvSizes& s) { return backward ? s.out : s.in; }
template <bool backward>
DAQ_DEVICE const int* result_size(const ConvSizes& s) { return backward ? s.in : s.out; }

// The epilogue: sums to stored bits, statistics, and results through shared memory so that rows go
// to memory in pieces of 16 bytes. reduces: with ReduceArguments, which has code of its own, so that
// plain grad-input has its registers for itself.
template <typename tile_t, bool backward, bool reduces = false>
class Epilogue {
  static_assert(backward || !reduces);

 public:
  static constexpr int kPieceRow = tile_t::kWarpColumns * 4 + kChunk;  // bytes; off the banks
  static constexpr int kWarps = tile_t::kThreads / kWarp;
  static constexpr int kStatisticsAt = kWarps * 16 * kPieceRow;
  static constexpr int kPositionsAt =
      kStatisticsAt + tile_t::kWarpsDown * tile_t::kColumns * 4 * static_cast<int>(sizeof(float));
  static constexpr int kColumnsAt =
      kPositionsAt + tile_t::kRows * static_cast<int>(sizeof(int64_t));
  static constexpr int kBytes = kColumnsAt + (reduces ? kReduceColumns : 3) * 4 * tile_t::kColumns;
  static_assert(kBytes <= tile_t::kSharedBytes);

  DAQ_DEVICE Epilogue(const RowsArguments& arguments, const ConvMap& map, int64_t first_row,
                      int64_t first_lane, int64_t group, int64_t split)
      : a_(arguments), map_(map), first_row_(first_row), first_lane_(first_lane), group_(group),
        split_(split), raw_(arguments.splits > 1),
        channels_(int64_t{1} * arguments.lanes * arguments.sizes.groups),
        rows_(arguments.sizes.n * map.positions()) {}

  static constexpr int kBarriers = 2;  // that run() calls

  DAQ_DEVICE void run(tile_t& tile) const {
    if constexpr (reduces) {
      run_reduced(tile);
    } else {
      run_plain(tile);
    }
  }

  // Of a row tile without rows, which a phase with fewer positions than the first one has.
  static DAQ_DEVICE void store_no_sums(const RowsArguments& a, int64_t first_row,
                                       int64_t first_lane, int64_t group) {
    store_row_sums(a, first_row, first_lane, group, [](int, int) { return 0.0f; });
  }

 private:
  DAQ_DEVICE void run_plain(tile_t& tile) const {
    find_positions();
    if (!raw_) find_columns();
    barrier();
    if (!raw_) finish(tile);
    barrier();
    if (!raw_ && !a_.statistics.is_null()) store_statistics();
    if (raw_ || a_.results.wide()) {
      store<4>(tile);
    } else {
      store<2>(tile);
    }
  }

  DAQ_DEVICE void run_reduced(tile_t& tile) const {
    find_positions();
    find_columns();
    find_reduce_columns();
    barrier();
    with_type(a_.results.type, [&](auto type) {
      if constexpr (type.value != ResultType::kInt32) {
        finish_as<type.value, false>(tile);
        store_reduced<type.value>(tile);
      }
    });
    barrier();
    const Shared<float> shared(kStatisticsAt, tile_t::kWarpsDown * 2 * tile_t::kColumns);
    store_row_sums(a_, first_row_, first_lane_, group_, [&](int which, int column) {
      float total = shared.load(which * tile_t::kColumns + column);
      for (int down = 1; down < tile_t::kWarpsDown; ++down) {
        total = add(total, shared.load((down * 2 + which) * tile_t::kColumns + column));
      }
      return total;
    });
  }

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

  // What all results of a column share: scale, correction, bias.
  static DAQ_DEVICE Shared<uint32_t> columns_at(int which) {
    return Shared<uint32_t>(kColumnsAt + which * 4 * tile_t::kColumns, tile_t::kColumns);
  }

  DAQ_DEVICE void find_columns() const {
    constexpr bool offset = !backward;
    const uint32_t zero_point = offset ? source_zero_point(a_.qparams) : 0u;
    const float first_step = offset ? source_step(a_.qparams) : 1.0f;
    for (int column = thread_index(); column < tile_t::kColumns; column += tile_t::kThreads) {
      const bool used = first_lane_ + column < a_.lanes;
      const int64_t channel = group_ * a_.lanes + (used ? first_lane_ + column : 0);
      const float step = a_.step.load(a_.step_by_channel ? channel : 0);
      columns_at(0).store(column, bits_of(offset ? multiply(first_step, step) : step));
      if (!offset) continue;
      columns_at(1).store(column, zero_point * static_cast<uint32_t>(a_.sums.load(channel)));
      if (!a_.bias.is_null()) columns_at(2).store(column, bits_of(a_.bias.load(channel)));
    }
  }

  DAQ_DEVICE void find_reduce_columns() const {
    const ReduceArguments& r = a_.reduce;
    if (r.mean.is_null()) return;
    for (int column = thread_index(); column < tile_t::kColumns; column += tile_t::kThreads) {
      if (first_lane_ + column >= a_.lanes) continue;
      const int64_t channel = group_ * a_.lanes + first_lane_ + column;
      columns_at(kMean).store(column, bits_of(r.mean.load(channel)));
      columns_at(kInvstd).store(column, bits_of(r.invstd.load(channel)));
      if (r.grid.is_null()) continue;
      columns_at(kLow).store(column, bits_of(r.grid.load(channel)));
      columns_at(kGridStep).store(column, bits_of(r.grid.load(channels_ + channel)));
    }
  }

  DAQ_DEVICE void finish(tile_t& tile) const {
    with_type(a_.results.type, [&](auto type) {
      constexpr bool kMayCount = !backward && type.value != ResultType::kInt32;
      if constexpr (kMayCount) {
        if (!a_.statistics.is_null()) return finish_as<type.value, true>(tile);
      }
      finish_as<type.value, false>(tile);
    });
  }

  // Sums become bits in place; statistics of the bits by column go to shared memory.
  template <ResultType type, bool statistics>
  DAQ_DEVICE void finish_as(tile_t& tile) const {
    const bool has_bias = !backward && !a_.bias.is_null();
#pragma unroll
    for (int pair = 0; pair < tile_t::kColumnTiles; pair += 2) {
      Statistics of_columns[4];
#pragma unroll
      for (int j = pair; j < pair + 2; ++j) {
        const int column = tile_t::warp_column() + j * 8 + lane_index() % 4 * 2;
        const auto scales = columns_at(0).template load_as<Bytes8>(column);
        Bytes8 corrections = {}, biases = {};
        if (!backward) corrections = columns_at(1).template load_as<Bytes8>(column);
        if (has_bias) biases = columns_at(2).template load_as<Bytes8>(column);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float scale = float_of_bits(scales.word[side]);
          const float bias = float_of_bits(biases.word[side]);
#pragma unroll
          for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
              int32_t& sum = tile.sum[i][j][2 * lower + side];
              const auto exact =
                  static_cast<int32_t>(static_cast<uint32_t>(sum) - corrections.word[side]);
              const uint32_t bits = result_bits_as<type>(exact, scale, has_bias, bias);
              sum = static_cast<int32_t>(bits);
              if constexpr (statistics) {
                const int row = tile_t::warp_row() + i * 16 + lower * 8 + lane_index() / 4;
                if (first_row_ + row < rows_) {
                  of_columns[2 * (j - pair) + side].include(result_value(bits, type));
                }
              }
            }
          }
        }
      }
      if constexpr (statistics) store_warp_statistics(of_columns, pair);
    }
  }

  // Of four columns, over the eight lanes that hold their rows: two tiles' even and odd ones. Lanes
  // exchange what the other one goes on with, so that each ends with one column.
  DAQ_DEVICE void store_warp_statistics(const Statistics (&of_columns)[4], int first_tile) const {
    const Shared<float> shared(kStatisticsAt, tile_t::kWarpsDown * tile_t::kColumns * 4);
    const int tile = lane_index() / 16, side = lane_index() / 8 % 2;
    Statistics kept[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Statistics &first = of_columns[s], &second = of_columns[2 + s];
      kept[s] = Statistics::chosen(tile == 0, first, second);
      kept[s].include(Statistics::chosen(tile == 0, second, first).of_lane_across(16));
    }
    Statistics last = Statistics::chosen(side == 0, kept[0], kept[1]);
    last.include(Statistics::chosen(side == 0, kept[1], kept[0]).of_lane_across(8));
    last.include(last.of_lane_across(4));
    if (lane_index() % 8 >= 4) return;  // the same again
    const int column =
        tile_t::warp_column() + (first_tile + tile) * 8 + lane_index() % 4 * 2 + side;
    const int down = warp_index() / tile_t::kWarpsAcross;
    last.store(shared, (down * tile_t::kColumns + column) * 4, 1);
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

  // of(which, column): the two sums of a column over the row tile's rows.
  template <typename F>
  static DAQ_DEVICE void store_row_sums(const RowsArguments& a, int64_t first_row,
                                        int64_t first_lane, int64_t group, F of) {
    const int64_t channels = int64_t{1} * a.lanes * a.sizes.groups;
    const int64_t row_tile = block_y() * a.reduce.row_tiles + first_row / tile_t::kRows;
    for (int column = thread_index(); column < tile_t::kColumns; column += tile_t::kThreads) {
      if (first_lane + column >= a.lanes) continue;
      const int64_t at = row_tile * 2 * channels + group * a.lanes + first_lane + column;
      a.reduce.sums.store(at, of(0, column));
      a.reduce.sums.store(at + channels, of(1, column));
    }
  }

  template <ResultType type>
  DAQ_DEVICE void store_reduced(const tile_t& tile) const {
    const Shared<int64_t> positions(kPositionsAt, tile_t::kRows);
    const int64_t lane = first_lane_ + tile_t::warp_column();
    using reduction_t = Reduction<type, tile_t::kWarpColumns>;
    reduction_t reduction(a_.reduce, channels_);
    by_pieces<reduction_t::kSize>(tile, [&](const Shared<uint8_t>& piece, int first) {
      reduction.store(
          piece, kPieceRow, a_.results.bytes, tile_t::warp_column(), group_ * a_.lanes + lane,
          a_.lanes - lane, [&](int row) { return positions.load(first + row); },
          [](int which) { return columns_at(which); });
    });
    const Shared<float> shared(kStatisticsAt, tile_t::kWarpsDown * 2 * tile_t::kColumns);
    const int down = warp_index() / tile_t::kWarpsAcross;
    reduction.finish([&](int which, int column, const Bytes16& four) {
      shared.store_as((down * 2 + which) * tile_t::kColumns + tile_t::warp_column() + column, four);
    });
  }

  // size: bytes of a result.
  template <int size>
  DAQ_DEVICE void store(const tile_t& tile) const {
    by_pieces<size>(tile, [&](const Shared<uint8_t>& piece, int first) {
      store_piece<size>(piece, first);
    });
  }

  // Puts the warp's rows into shared memory, 16 after the other, and calls use(them, the first).
  template <int size, typename F>
  DAQ_DEVICE void by_pieces(const tile_t& tile, F use) const {
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
          if constexpr (size == 4) {
            piece.store_as(row + column * 4, Bytes8{{left, right}});
          } else {
            piece.store_as(row + column * 2, left | right << 16);
          }
        }
      }
      warp_barrier();
      use(piece, tile_t::warp_row() + i * 16);
      warp_barrier();
    }
  }

  // 16 rows of a warp's columns, from shared memory to the results.
  template <int size>
  DAQ_DEVICE void store_piece(const Shared<uint8_t>& piece, int first) const {
    const Shared<int64_t> positions(kPositionsAt, tile_t::kRows);
    constexpr int per_row = tile_t::kWarpColumns * size / kChunk;
    constexpr int per_chunk = kChunk / size;
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
        for (int e = 0; e < per_chunk; ++e) {
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

}  // namespace rows
}  // namespace daq_mm::cuda
