// Grad-weight on tensor cores: dw[co][tap][ci] = sum over positions p of q_g[p][co] * q_x[p, tap][ci].
//
// Both operands are channels-last, so a contraction over positions runs across memory rows. Rows
// are copied as they lie ([position][channel], by asynchronous copies, with any stride, dilation and
// padding), and turned while fragments are loaded: a transposed matrix load of 16-bit values gives
// a lane two positions of two neighbouring channels; two such registers and one byte permutation
// make four positions of one channel. So a fragment register costs one extra instruction and there
// is no transposed copy in memory. The order of positions within 32 is permuted by this, for both
// operands alike, and rows and columns of a fragment are neighbouring channels: see multiply_stage.
//
// The contraction is split over blocks; partial int32 sums are added exactly in conv_finish.cu,
// where zero point times the gradients' sums (dot products with ones on the way) is taken off.

#include <type_traits>

#include "cuda/conv_finish.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_pack.h"
#include "cuda/conv_tile.h"
#include "cuda/depthwise.h"
#include "cuda/workspace.h"

namespace daq_mm::cuda {
namespace {

struct GradWeightProblem {
  ConvSizes sizes;
  int64_t columns;               // taps * Ci / groups, of a group
  int64_t splits;
  int split_steps;
  Global<const uint8_t> q_x;
  Global<const uint8_t> q_g;
  Global<const uint8_t> pads;    // 16 times the zero point, 16 zeros
  Global<const float> qparams;
  Global<int32_t> partial;       // [split][co][columns]
  Global<int32_t> sums;          // [split][co], written if the zero point is not 0
};

// Copies 64 positions of a block's rows of gradients: [position][rows bytes].
template <typename tile_t, bool whole_chunks>
class GradientRows {
 public:
  static constexpr int kWidth = tile_t::kRows;
  static constexpr int kAcross = kWidth / kChunk;
  static constexpr int kRowsAPass = tile_t::kThreads / kAcross;

  DAQ_DEVICE GradientRows(const GradWeightProblem& problem, int64_t first_row, int64_t group,
                          int step)
      : a_(problem) {
    const int64_t in_group = first_row + thread_index() % kAcross * kChunk;
    const int64_t position = int64_t{1} * step * kStep + thread_index() / kAcross;
    available_ = static_cast<int>(a_.sizes.co_per_group() - in_group);
    at_ = position * a_.sizes.co + group * a_.sizes.co_per_group() + in_group;
    left_ = a_.sizes.n * a_.sizes.out_positions() - position;
    if (available_ <= 0) left_ = 0;
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % kAcross;
#pragma unroll
    for (int i = 0; i < kStep / kRowsAPass; ++i) {
      const int row = thread_index() / kAcross + i * kRowsAPass;
      const bool inside = i * kRowsAPass < left_;
      const int to = swizzled<kWidth>(row, chunk);
      const int64_t at = at_ + i * kRowsAPass * a_.sizes.co;
      if constexpr (whole_chunks) {
        copy16_async(stage, to, inside ? a_.q_g : a_.pads, inside ? at : kChunk);
      } else {
        stage.store_as(to, inside ? gathered(at) : Bytes16{});
      }
    }
    at_ += kStep * a_.sizes.co;
    left_ -= kStep;
  }

 private:
  DAQ_DEVICE Bytes16 gathered(int64_t at) const {
    Bytes16 chunk = {};
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t bits = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int place = word * 4 + b;
        if (place < available_) bits |= static_cast<uint32_t>(a_.q_g.load(at + place)) << (b * 8);
      }
      chunk = {{chunk.word[1], chunk.word[2], chunk.word[3], bits}};
    }
    return chunk;
  }

  const GradWeightProblem& a_;
  int64_t at_;        // of the thread's chunk in the next step's first row
  int64_t left_;      // positions from there on; none for channels beyond the group
  int available_;     // channels of the group from the chunk on
};

// Copies 64 positions of a block's columns of activations: [position][columns bytes], column
// tap * Ci / groups + channel.
template <typename tile_t, bool whole_chunks>
class ActivationRows {
 public:
  static constexpr int kWidth = tile_t::kColumns;
  static constexpr int kAcross = kWidth / kChunk;
  static constexpr int kRowsAPass = tile_t::kThreads / kAcross;
  static constexpr int kRows = kStep / kRowsAPass;

  DAQ_DEVICE ActivationRows(const GradWeightProblem& problem, int64_t first_column, int64_t group,
                            int step)
      : a_(problem), stride_(GridPosition::of(kStep, problem.sizes.out)),
        image_values_(problem.sizes.in_positions() * problem.sizes.ci),
        channels_(static_cast<int>(problem.sizes.ci)) {
    const int64_t position = int64_t{1} * step * kStep + thread_index() / kAcross;
    left_ = a_.sizes.n * a_.sizes.out_positions() - position;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      at_[i] = GridPosition::of(position + i * kRowsAPass, a_.sizes.out);
    }
    const int64_t column = first_column + thread_index() % kAcross * kChunk;
    const int* kernel = a_.sizes.kernel;
    const int per_group = static_cast<int>(a_.sizes.ci_per_group());
    const int tap = static_cast<int>(column / per_group);
    first_channel_ = static_cast<int>(group) * per_group;
    place_ = {{tap / kernel[2] / kernel[1], tap / kernel[2] % kernel[1], tap % kernel[2]},
              first_channel_ + static_cast<int>(column % per_group)};
    available_ = column < a_.columns ? static_cast<int>(a_.columns - column) : 0;
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % kAcross;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = thread_index() / kAcross + i * kRowsAPass;
      const bool used = i * kRowsAPass < left_;
      const int to = swizzled<kWidth>(row, chunk);
      if constexpr (whole_chunks) {
        const int64_t at = used && available_ > 0 ? address(at_[i], place_) : -1;
        copy16_async(stage, to, at >= 0 ? a_.q_x : a_.pads, at >= 0 ? at : 0);
      } else {
        stage.store_as(to, used ? gathered(at_[i]) : Bytes16{});
      }
      at_[i].advance(stride_, a_.sizes.out);
    }
    left_ -= kStep;
  }

 private:
  struct Place {
    int tap[3];
    int channel;  // of all groups
  };

  DAQ_DEVICE int64_t address(const GridPosition& p, const Place& place) const {
    const ConvSizes& s = a_.sizes;
    bool inside = true;
    int position = 0;  // may wrap outside, where it is not used
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int at =
          p.at[axis] * s.stride[axis] + (place.tap[axis] * s.dilation[axis] - s.pad[axis]);
      inside = inside && static_cast<unsigned>(at) < static_cast<unsigned>(s.in[axis]);
      position = static_cast<int>(static_cast<unsigned>(position) * s.in[axis] + at);
    }
    return inside ? p.image * image_values_ + place.channel + int64_t{1} * position * channels_
                  : -1;
  }

  // To the next column.
  DAQ_DEVICE void advance(Place& place) const {
    const ConvSizes& s = a_.sizes;
    if (++place.channel != first_channel_ + s.ci_per_group()) return;
    place.channel = first_channel_;
    if (++place.tap[2] != s.kernel[2]) return;
    place.tap[2] = 0;
    if (++place.tap[1] != s.kernel[1]) return;
    place.tap[1] = 0;
    ++place.tap[0];
  }

  DAQ_DEVICE Bytes16 gathered(const GridPosition& p) const {
    const auto outside = static_cast<uint32_t>(a_.pads.load(0));
    Place place = place_;
    Bytes16 chunk = {};
    int column = 0;
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t bits = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b, ++column) {
        const int64_t at = column < available_ ? address(p, place) : -1;
        bits |= (at >= 0 ? a_.q_x.load(at) : outside) << (b * 8);
        advance(place);
      }
      chunk = {{chunk.word[1], chunk.word[2], chunk.word[3], bits}};
    }
    return chunk;
  }

  const GradWeightProblem& a_;
  GridPosition stride_;
  int64_t image_values_;
  int channels_;
  int first_channel_;     // of the group
  int64_t left_;          // positions from the thread's first row of the next step on
  int available_;         // columns from the thread's chunk on
  GridPosition at_[kRows];
  Place place_;
};

// Four positions of each of two channels from two registers with two positions of both.
DAQ_DEVICE uint32_t even_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x6420);
}
DAQ_DEVICE uint32_t odd_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x7531);
}

// Adds one stage's products, and to gradient_sums the gradients of row tile i's even and odd
// channels. In a fragment of A, row g is channel 2 g and row g + 8 is channel 2 g + 1 of 16; the two
// column tiles of 16 channels of B hold the even and the odd ones.
template <typename tile_t>
DAQ_DEVICE void multiply_stage(tile_t& tile, int stage, bool add_gradients,
                               int32_t (&gradient_sums)[tile_t::kRowTiles][2]) {
  const Shared<uint8_t> left(stage, tile_t::kRowBytes);
  const Shared<uint8_t> right(stage + tile_t::kRowBytes, tile_t::kColumns * kStep);
#pragma unroll
  for (int half = 0; half < kStep / 32; ++half) {
    const int row = half * 32 + lane_index();
    uint32_t a[tile_t::kRowTiles][4];
    uint32_t b[tile_t::kColumnTiles][2];
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
      uint32_t loaded[4];
      load_matrices_transposed(loaded, left,
                               swizzled<tile_t::kRows>(row, tile_t::warp_row() / kChunk + i));
      a[i][0] = even_channel(loaded[0], loaded[1]);
      a[i][1] = odd_channel(loaded[0], loaded[1]);
      a[i][2] = even_channel(loaded[2], loaded[3]);
      a[i][3] = odd_channel(loaded[2], loaded[3]);
    }
#pragma unroll
    for (int j = 0; j < tile_t::kColumnTiles / 2; ++j) {
      uint32_t loaded[4];
      load_matrices_transposed(
          loaded, right, swizzled<tile_t::kColumns>(row, tile_t::warp_column() / kChunk + j));
      b[2 * j][0] = even_channel(loaded[0], loaded[1]);
      b[2 * j][1] = even_channel(loaded[2], loaded[3]);
      b[2 * j + 1][0] = odd_channel(loaded[0], loaded[1]);
      b[2 * j + 1][1] = odd_channel(loaded[2], loaded[3]);
    }
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles; ++j) {
        multiply_add<int8_t, uint8_t>(tile.sum[i][j], a[i], b[j]);
      }
    }
    if (!add_gradients) continue;
#pragma unroll
    for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        gradient_sums[i][odd] = dot_product(a[i][odd], 0x01010101u, gradient_sums[i][odd]);
        gradient_sums[i][odd] = dot_product(a[i][odd + 2], 0x01010101u, gradient_sums[i][odd]);
      }
    }
  }
}

// A warp's sums to memory: lane (group, member) holds columns 4 member .. 4 member + 3 of 16 for
// rows 2 group and 2 group + 1 of 16.
template <typename tile_t>
DAQ_DEVICE void store_partial(const GradWeightProblem& a, const tile_t& tile, int64_t first_row,
                              int64_t first_column, int64_t group, int64_t split) {
  const int64_t rows = a.sizes.co_per_group();
  const bool whole = a.columns % 4 == 0;
#pragma unroll
  for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t row =
          first_row + tile_t::warp_row() + i * 16 + lane_index() / 4 * 2 + odd;
      if (row >= rows) continue;
      const int64_t to = (split * a.sizes.co + group * rows + row) * a.columns;
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles / 2; ++j) {
        const int64_t column =
            first_column + tile_t::warp_column() + j * 16 + lane_index() % 4 * 4;
        const auto& even = tile.sum[i][2 * j];
        const auto& uneven = tile.sum[i][2 * j + 1];
        const int32_t sums[4] = {even[2 * odd], uneven[2 * odd], even[2 * odd + 1],
                                 uneven[2 * odd + 1]};
        if (whole && column < a.columns) {
          a.partial.store_as(to + column,
                             Bytes16{{static_cast<uint32_t>(sums[0]),
                                      static_cast<uint32_t>(sums[1]),
                                      static_cast<uint32_t>(sums[2]),
                                      static_cast<uint32_t>(sums[3])}});
          continue;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (column + c < a.columns) a.partial.store(to + column + c, sums[c]);
        }
      }
    }
  }
}

// The sums of gradients by row: over the four lanes that share one.
template <typename tile_t>
DAQ_DEVICE void store_gradient_sums(const GradWeightProblem& a,
                                    const int32_t (&sums)[tile_t::kRowTiles][2],
                                    int64_t first_row, int64_t group, int64_t split) {
  const int64_t rows = a.sizes.co_per_group();
#pragma unroll
  for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      int32_t sum = sums[i][odd];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int64_t row =
          first_row + tile_t::warp_row() + i * 16 + lane_index() / 4 * 2 + odd;
      if (lane_index() % 4 == 0 && row < rows) {
        a.sums.store(split * a.sizes.co + group * rows + row, sum);
      }
    }
  }
}

// Grid: x row tiles x column tiles (columns fastest: neighbours share gradients), y groups,
// z splits.
template <typename tile_t, bool whole_chunks>
DAQ_KERNEL(tile_t::kThreads, tile_t::kResident)
void grad_weight_kernel(GradWeightProblem a) {
  const int64_t column_tiles = ceil_div(a.columns, int64_t{tile_t::kColumns});
  const int64_t first_row = block_x() / column_tiles * tile_t::kRows;
  const int64_t first_column = block_x() % column_tiles * tile_t::kColumns;
  const int64_t group = block_y();
  const int64_t split = block_z();
  const auto steps =
      static_cast<int>(ceil_div(a.sizes.n * a.sizes.out_positions(), int64_t{kStep}));
  const int begin = static_cast<int>(split) * a.split_steps;
  const int end = begin + a.split_steps < steps ? begin + a.split_steps : steps;
  const bool add_gradients =
      first_column == 0 && tile_t::warp_column() == 0 && source_zero_point(a.qparams) != 0;

  GradientRows<tile_t, whole_chunks> gradients(a, first_row, group, begin);
  ActivationRows<tile_t, whole_chunks> activations(a, first_column, group, begin);
  tile_t tile;
  int32_t gradient_sums[tile_t::kRowTiles][2] = {};
  run_pipeline<tile_t::kStageBytes>(
      begin, end,
      [&](int stage) {
        gradients.load(Shared<uint8_t>(stage, tile_t::kRowBytes));
        activations.load(Shared<uint8_t>(stage + tile_t::kRowBytes, tile_t::kColumns * kStep));
      },
      [&](int stage) { multiply_stage(tile, stage, add_gradients, gradient_sums); });
  store_partial(a, tile, first_row, first_column, group, split);
  if (add_gradients) store_gradient_sums<tile_t>(a, gradient_sums, first_row, group, split);
}

template <typename tile_t>
void launch_tile(const GradWeightProblem& a, Stream stream) {
  const ConvSizes& s = a.sizes;
  const Grid grid{ceil_div(s.co_per_group(), int64_t{tile_t::kRows}) *
                      ceil_div(a.columns, int64_t{tile_t::kColumns}),
                  s.groups, a.splits};
  const bool whole = s.ci_per_group() % kChunk == 0 && s.co_per_group() % kChunk == 0 &&
                     a.q_x.is_aligned(kChunk) && a.q_g.is_aligned(kChunk);
  if (whole) {
    launch(grad_weight_kernel<tile_t, true>, grid, tile_t::kThreads, tile_t::kSharedBytes, stream,
           a);
  } else {
    launch(grad_weight_kernel<tile_t, false>, grid, tile_t::kThreads, tile_t::kSharedBytes, stream,
           a);
  }
}

}  // namespace

void grad_weight(const GradWeightArguments& g, const ConvSizes& s, const ConvPlan& plan,
                 void* workspace, Stream stream) {
  GradWeightProblem a;
  a.sizes = s;
  a.columns = s.taps() * s.ci_per_group();
  a.splits = plan.splits;
  a.split_steps = static_cast<int>(plan.split_steps);
  a.q_x = Global<const uint8_t>(g.q_x, s.n * s.in_positions() * s.ci);
  a.q_g = Global<const uint8_t>(reinterpret_cast<const uint8_t*>(g.q_g),
                                s.n * s.out_positions() * s.co);
  a.qparams = Global<const float>(g.x_qparams, 2);
  const Workspace w(workspace, plan.workspace_bytes);
  a.partial = w.at<int32_t>(plan.partial_at, plan.splits * s.co * a.columns);

  FinishArguments finish;
  if (plan.depthwise) {
    const Global<const int8_t> q_g(g.q_g, s.n * s.out_positions() * s.co);
    depthwise_grad_weight(a.q_x, a.qparams, q_g, s, plan.splits, plan.split_steps * kStep,
                          a.partial, stream);
  } else {
    const auto pads = w.at<uint8_t>(plan.pads_at, kPadBytes);
    write_pads(a.qparams, pads, stream);
    a.pads = read_only(pads);
    a.sums = w.at<int32_t>(plan.sums_at, plan.splits * s.co);
    finish.sums = read_only(a.sums);
    switch (plan.tile) {
      case TileShape::k128x128: launch_tile<Tile128x128>(a, stream); break;
      case TileShape::k128x64: launch_tile<Tile128x64>(a, stream); break;
      case TileShape::k64x64: launch_tile<Tile64x64>(a, stream); break;
      default: throw std::logic_error("not a tile of mma.sync");
    }
  }
  finish.partial = read_only(a.partial);
  finish.splits = plan.splits;
  finish.rows = s.co;
  finish.columns = a.columns;
  finish.sum_splits = plan.splits;
  finish.by_row = true;
  finish.qparams = a.qparams;
  finish.step = Global<const float>(g.g_step, s.co);
  finish.many_steps = true;
  finish.results = make_results(g.dw, g.type, s.co * a.columns, a.columns, a.columns);
  finish.taps = g.channels_last ? 0 : s.taps();
  finish_sums(finish, stream);
}

}  // namespace daq_mm::cuda
