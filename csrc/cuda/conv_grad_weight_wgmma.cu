// Grad-weight on compute capability 9.0: the product of conv_grad_weight.cu by warpgroups.
//
// wgmma wants the contraction, positions, side by side in shared memory, where copies bring them
// across rows; only its left operand may come from registers. So gradients are turned on their way
// to registers, as for mma.sync, and activations once a stage for all warps: each warp turns its
// share of 16 columns x 32 positions and stores it where a product reads it, in rows of 64 positions
// with the permutation of 64-byte rows. Column 2 g of 16 becomes row g, column 2 g + 1 row g + 8, so
// that the eight lanes of a store lie in different banks; sums then lie as mma.sync's do.
//
// The turned activations have two places in turn: while one is multiplied, the next stage is turned
// into the other. Registers of gradients have one, so their turning waits for the products before;
// a second block on the processor multiplies meanwhile.

#include <stdexcept>

#include "cuda/conv_grad_weight_copies.h"
#include "cuda/conv_wgmma.h"
#include "cuda/primitives/warpgroup.h"

namespace daq_mm::cuda {
namespace {

constexpr int kHalves = kStep / 32;  // products of a stage

// A warpgroup multiplies 64 rows by all columns.
template <int rows, int columns>
struct WgmmaGradTile {
  static constexpr int kRows = rows;
  static constexpr int kColumns = columns;
  static constexpr int kWarpRows = 16;
  static constexpr int kWarps = rows / kWarpRows;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kResident = rows == 256 ? 1 : rows == 128 ? 2 : 3;
  static constexpr int kRowTiles = 1;
  static constexpr int kColumnTiles = columns / 8;
  static constexpr int kRowBytes = kRows * kStep;  // a stage's
  static constexpr int kColumnBytes = kColumns * kStep;
  static constexpr int kStageBytes = kRowBytes + kColumnBytes;
  static constexpr int kTurnedAt = kStages * kStageBytes;
  static constexpr int kLaunchBytes = kTurnedAt + 2 * kColumnBytes;
  static_assert(kResident * (kLaunchBytes + 1024) <= 228 * 1024);  // a block's own KB
  // Each permutation of eight rows begins at a multiple of its 512 bytes.
  static_assert(kTurnedAt % 512 == 0 && kColumnBytes % 512 == 0);

  int32_t sum[kRowTiles][kColumnTiles][4] = {};

  static DAQ_DEVICE int warp_row() { return warp_index() * kWarpRows; }
  static DAQ_DEVICE int warp_column() { return 0; }
  static DAQ_DEVICE Shared<uint8_t> turned(int place) {
    return Shared<uint8_t>(kTurnedAt + place * kColumnBytes, kColumnBytes);
  }
};

// Turns a stage's activations: this warp's share.
template <typename tile_t>
DAQ_DEVICE void turn_activations(int stage, const Shared<uint8_t>& turned) {
  const Shared<uint8_t> rows(stage + tile_t::kRowBytes, tile_t::kColumnBytes);
  constexpr int kChunks = tile_t::kColumns / kChunk;
  constexpr int kShares = kChunks * kHalves;
#pragma unroll
  for (int share = 0; share < kShares; share += tile_t::kWarps) {
    const int mine = share + warp_index();
    if (kShares % tile_t::kWarps != 0 && mine >= kShares) break;
    const int chunk = mine % kChunks, half = mine / kChunks;
    uint32_t loaded[4];
    load_matrices_transposed(loaded, rows,
                             swizzled<tile_t::kColumns>(half * 32 + lane_index(), chunk));
    const int row = chunk * kChunk + lane_index() / 4;
    const int word = lane_index() % 4 * 4;
#pragma unroll
    for (int part = 0; part < 2; ++part) {  // of 16 positions
      const int at = half * 2 + part;
      turned.template store_as<uint32_t>(swizzled<kStep>(row, at) + word,
                                         even_channel(loaded[2 * part], loaded[2 * part + 1]));
      turned.template store_as<uint32_t>(swizzled<kStep>(row + 8, at) + word,
                                         odd_channel(loaded[2 * part], loaded[2 * part + 1]));
    }
  }
}

// Turns a stage's gradients into this warp's registers.
template <typename tile_t>
DAQ_DEVICE void load_gradients(int stage, uint32_t (&a)[kHalves][4]) {
  const Shared<uint8_t> rows(stage, tile_t::kRowBytes);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    uint32_t loaded[4];
    load_matrices_transposed(
        loaded, rows, swizzled<tile_t::kRows>(half * 32 + lane_index(), warp_index()));
    a[half][0] = even_channel(loaded[0], loaded[1]);
    a[half][1] = odd_channel(loaded[0], loaded[1]);
    a[half][2] = even_channel(loaded[2], loaded[3]);
    a[half][3] = odd_channel(loaded[2], loaded[3]);
  }
}

// The byte at which a step's copies lie.
template <typename tile_t>
DAQ_DEVICE int stage_of(int step) {
  return step % kStages * tile_t::kStageBytes;
}

template <typename tile_t, int axes>
DAQ_DEVICE void run_block(const GradWeightProblem& a) {
  const auto [first_row, first_column, group, split, begin, end] = BlockShare::of<tile_t>(a);
  const bool add_gradients = first_column == 0 && source_zero_point(a.qparams) != 0;

  GradientRows<tile_t, true> gradients(a, first_row, group, begin);
  ActivationChunks<tile_t, axes> activations(a, first_column, group, begin);
  tile_t tile;
  int32_t gradient_sums[tile_t::kRowTiles][2] = {};
  uint32_t left[kHalves][4];
  // Copies of two steps are in flight while one is turned and the one before it multiplied.
  const auto copy = [&](int step) {
    if (step < end) {
      const int stage = stage_of<tile_t>(step - begin);
      gradients.load(Shared<uint8_t>(stage, tile_t::kRowBytes));
      activations.load(Shared<uint8_t>(stage + tile_t::kRowBytes, tile_t::kColumnBytes));
    }
    commit_copies();
  };
  // Waits for a step's copies and turns its activations. The products that read their place were
  // waited for by all before the last barrier.
  const auto turn = [&](int step) {
    wait_copies<kStages - 2>();
    barrier();  // the copies are there for all, and the stage of the step before is free
    copy(step + kStages - 1);
    turn_activations<tile_t>(stage_of<tile_t>(step - begin), tile_t::turned((step - begin) % 2));
    publish_stores();
  };
  const auto multiply = [&](int step) {
    const Shared<uint8_t> turned = tile_t::turned((step - begin) % 2);
    if (add_gradients) {  // before the products: until they are waited for, `left` is theirs
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          gradient_sums[0][r % 2] =
              dot_product(left[half][r], 0x01010101u, gradient_sums[0][r % 2]);
        }
      }
    }
    begin_products(tile.sum[0], left);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      multiply_add_async(tile.sum[0], left[half], matrix_descriptor<kStep>(turned, half * 32));
    }
    commit_products();
  };

  for (int step = begin; step < begin + kStages - 1; ++step) copy(step);
  turn(begin);
  load_gradients<tile_t>(stage_of<tile_t>(0), left);
  barrier();
  int step = begin;
  for (; step + 1 < end; ++step) {
    multiply(step);
    turn(step + 1);
    finish_products(tile.sum[0]);
    load_gradients<tile_t>(stage_of<tile_t>(step + 1 - begin), left);
    barrier();
  }
  multiply(step);
  finish_products(tile.sum[0]);
  wait_copies<0>();
  store_partial(a, tile, first_row, first_column, group, split);
  if (add_gradients) store_gradient_sums<tile_t>(a, gradient_sums, first_row, group, split);
}

template <typename tile_t, int axes>
DAQ_KERNEL(kWarpgroups ? tile_t::kThreads : kWarp, tile_t::kResident)
void grad_weight_wgmma_kernel(GradWeightProblem a) {
  if constexpr (kWarpgroups) run_block<tile_t, axes>(a);
}

template <typename tile_t>
void launch_tile(const GradWeightProblem& a, Stream stream) {
  const Grid grid{ceil_div(a.sizes.co_per_group(), int64_t{tile_t::kRows}) *
                      ceil_div(a.columns, int64_t{tile_t::kColumns}),
                  a.sizes.groups, a.splits};
  if (walk_axes(a.sizes) == 2) {
    launch(grad_weight_wgmma_kernel<tile_t, 2>, grid, tile_t::kThreads, tile_t::kLaunchBytes,
           stream, a);
  } else {
    launch(grad_weight_wgmma_kernel<tile_t, 3>, grid, tile_t::kThreads, tile_t::kLaunchBytes,
           stream, a);
  }
}

}  // namespace

void grad_weight_wgmma(const GradWeightProblem& a, TileShape tile, Stream stream) {
  switch (tile) {
    case TileShape::kWgmma128x128: launch_tile<WgmmaGradTile<128, 128>>(a, stream); break;
    case TileShape::kWgmma256x128: launch_tile<WgmmaGradTile<256, 128>>(a, stream); break;
    case TileShape::kWgmma128x64: launch_tile<WgmmaGradTile<128, 64>>(a, stream); break;
    case TileShape::kWgmma64x128: launch_tile<WgmmaGradTile<64, 128>>(a, stream); break;
    default: throw std::logic_error("not a tile of grad-weight by wgmma");
  }
}

}  // namespace daq_mm::cuda
