// What grad-weight's two kinds of tiles share, mma.sync's (conv_grad_weight.cu) and wgmma's
// (conv_grad_weight_wgmma.cu): the problem, four positions of a channel in a register, and where sums
// go. How operands come is in conv_grad_weight_copies.h.
//
// A transposed matrix load of 16-bit values gives a lane two positions of two neighbouring channels;
// two such registers and one byte permutation make four positions of one channel. The order of
// positions within 32 is permuted by this, for both operands alike, and rows and columns of a
// fragment are neighbouring channels: row g of 16 is channel 2 g, row g + 8 is channel 2 g + 1.
#pragma once

#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {

// How activations move when a walk over output positions goes kStep further, in input coordinates
// and bytes: known to the host, so that a thread only adds and compares.
struct ActivationWalk {
  int step[3];      // of the coordinates D, H, W
  int period[3];    // what is taken off a coordinate that runs over, ...
  int carry[3];     // ... what is added to the one before it,
  int64_t wrap[3];  // and to the address for both
  int64_t delta;    // of the address, without any of this

  static ActivationWalk of(const ConvSizes& s) {
    // Bytes of an image, and of a place in D, H, W.
    const int64_t line = int64_t{1} * s.in[2] * s.ci, plane = s.in[1] * line;
    const int64_t bytes[4] = {s.in[0] * plane, plane, line, s.ci};
    const auto stride = [&](int axis) { return s.out[axis] == 1 ? 1 : s.stride[axis]; };
    ActivationWalk walk;
    walk.delta = 0;
    int rest = kStep;
    for (int a = 2; a >= 0; --a) {
      walk.step[a] = rest % s.out[a] * stride(a);
      walk.period[a] = s.out[a] * stride(a);
      walk.carry[a] = a == 0 ? 0 : stride(a - 1);
      walk.wrap[a] = (a == 0 ? 1 : stride(a - 1)) * bytes[a] - walk.period[a] * bytes[a + 1];
      walk.delta += walk.step[a] * bytes[a + 1];
      rest /= s.out[a];
    }
    walk.delta += rest * bytes[0];
    return walk;
  }
};

struct GradWeightProblem {
  ConvSizes sizes;
  ActivationWalk walk;
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

// What this block computes: a tile of a group's results, over the steps begin..end-1. Grid: x row
// tiles x column tiles (columns fastest: neighbours share gradients), y groups, z splits.
struct BlockShare {
  int64_t first_row, first_column, group, split;
  int begin, end;

  template <typename tile_t>
  static DAQ_DEVICE BlockShare of(const GradWeightProblem& a) {
    const int64_t column_tiles = ceil_div(a.columns, int64_t{tile_t::kColumns});
    const auto steps =
        static_cast<int>(ceil_div(a.sizes.n * a.sizes.out_positions(), int64_t{kStep}));
    const int begin = static_cast<int>(block_z()) * a.split_steps;
    return {block_x() / column_tiles * tile_t::kRows, block_x() % column_tiles * tile_t::kColumns,
            block_y(), block_z(), begin,
            begin + a.split_steps < steps ? begin + a.split_steps : steps};
  }
};

// Four positions of each of two channels from two registers with two positions of both.
DAQ_DEVICE uint32_t even_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x6420);
}
DAQ_DEVICE uint32_t odd_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x7531);
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

// Whether both operands can be copied by 16 bytes.
inline bool has_whole_chunks(const GradWeightProblem& a) {
  return a.sizes.ci_per_group() % kChunk == 0 && a.sizes.co_per_group() % kChunk == 0 &&
         a.q_x.is_aligned(kChunk) && a.q_g.is_aligned(kChunk);
}

// Partial sums by tiles of wgmma: compute capability 9.0, whole chunks.
void grad_weight_wgmma(const GradWeightProblem& problem, TileShape tile, Stream stream);

}  // namespace daq_mm::cuda
