// What the two kinds of tile kernels share: the shape of a block's tile, how its operands lie in
// shared memory, and the pipeline of copies and tensor-core products over the contraction.
//
// A stage holds 64 steps of the contraction of both operands, 8-bit. Copies of two stages are in
// flight while the third is multiplied; one barrier a stage. Rows are swizzled:
// their 16-byte chunks are permuted by the row's number, so that eight rows' equal chunks, which
// one matrix load reads, lie in different banks.
#pragma once

#include "cuda/conv_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

constexpr int kStep = 64;    // of the contraction, a stage
constexpr int kChunk = 16;   // bytes of one copy
constexpr int kStages = 3;

// A block computes rows x columns; each warp warp_rows x 32 of them.
template <int rows_, int columns_, int warp_rows_>
struct Tile {
  static constexpr int kRows = rows_;
  static constexpr int kColumns = columns_;
  static constexpr int kWarpRows = warp_rows_;
  static constexpr int kWarpColumns = 32;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kWarpsDown = kRows / kWarpRows;
  static constexpr int kThreads = kWarpsAcross * kWarpsDown * kWarp;
  // Blocks that a processor's registers must hold: 128 to 168 a thread.
  static constexpr int kResident = kThreads == 256 ? 2 : kWarpRows == 64 ? 3 : 4;
  static constexpr int kRowTiles = kWarpRows / 16;       // of one product instruction
  static constexpr int kColumnTiles = kWarpColumns / 8;
  static constexpr int kRowBytes = kRows * kStep;        // a stage's
  static constexpr int kStageBytes = (kRows + kColumns) * kStep;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  int32_t sum[kRowTiles][kColumnTiles][4] = {};  // the warp's results, as multiply_add lays them

  static DAQ_DEVICE int warp_row() { return warp_index() / kWarpsAcross * kWarpRows; }
  static DAQ_DEVICE int warp_column() { return warp_index() % kWarpsAcross * kWarpColumns; }
};

using Tile128x128 = Tile<128, 128, 64>;
using Tile128x64 = Tile<128, 64, 64>;
using Tile64x64 = Tile<64, 64, 32>;

// The byte at which chunk `chunk` of row `row` lies, in rows of `width` bytes.
template <int width>
DAQ_DEVICE int swizzled(int row, int chunk) {
  static_assert(width == 64 || width == 128 || width == 256);
  const int mixed = width >= 128 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  return row * width + mixed * kChunk;
}

// Runs steps begin..end-1: load(stage byte) starts the copies of the next step into the stage at
// that byte of shared memory, multiply(stage byte) adds its products. Afterwards shared memory is
// free for other use.
template <int stage_bytes, typename Load, typename Multiply>
DAQ_DEVICE void run_pipeline(int begin, int end, Load load, Multiply multiply) {
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (begin + ahead < end) load(ahead * stage_bytes);
    commit_copies();
  }
  int stage = 0;
  for (int step = begin; step < end; ++step) {
    wait_copies<kStages - 2>();
    barrier();  // the step's copies are there for all, and its predecessor's stage is free
    const int free = stage == 0 ? kStages - 1 : stage - 1;
    if (step + kStages - 1 < end) load(free * stage_bytes);
    commit_copies();
    multiply(stage * stage_bytes);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  wait_copies<0>();
  barrier();
}

// A position (image, d, h, w) of a dense grid, walked in strides without divisions.
struct GridPosition {
  int image;
  int at[3];

  static DAQ_DEVICE GridPosition of(int64_t index, const int (&count)[3]) {
    // 64-bit divisions are calls; few tensors need them.
    return index <= 0x7fffffff ? split(static_cast<uint32_t>(index), count) : split(index, count);
  }

  template <typename index_t>
  static DAQ_DEVICE GridPosition split(index_t index, const int (&count)[3]) {
    GridPosition p;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      p.at[a] = static_cast<int>(index % static_cast<index_t>(count[a]));
      index /= static_cast<index_t>(count[a]);
    }
    p.image = static_cast<int>(index);
    return p;
  }

  // step: the position of a number of grid points, by of().
  DAQ_DEVICE void advance(const GridPosition& step, const int (&count)[3]) {
    int carry = 0;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      at[a] += step.at[a] + carry;
      carry = at[a] >= count[a] ? 1 : 0;
      if (carry) at[a] -= count[a];
    }
    image += step.image + carry;
  }
};

}  // namespace daq_mm::cuda
