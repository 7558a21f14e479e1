// Grad-weight on tensor cores: dw[co][tap][ci] = sum over positions p of q_g[p][co] * q_x[p, tap][ci].
//
// Both operands are channels-last, so a contraction over positions runs across memory rows. Rows
// are copied as they lie ([position][channel], by asynchronous copies, with any stride, dilation and
// padding), and turned while fragments are loaded (conv_grad_weight.h). So a fragment register costs
// one extra instruction and there is no transposed copy in memory.
//
// The contraction is split over blocks; partial int32 sums are added exactly in conv_finish.cu,
// where zero point times the gradients' sums (dot products with ones on the way) is taken off.

#include "cuda/conv_grad_weight_copies.h"

#include <stdexcept>

#include "cuda/conv_finish.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_pack.h"
#include "cuda/depthwise.h"
#include "cuda/depthwise_sizes.h"
#include "cuda/workspace.h"

namespace daq_mm::cuda {
namespace {

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

template <typename tile_t, bool whole_chunks>
DAQ_KERNEL(tile_t::kThreads, tile_t::kResident)
void grad_weight_kernel(GradWeightProblem a) {
  const auto [first_row, first_column, group, split, begin, end] = BlockShare::of<tile_t>(a);
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
  if (has_whole_chunks(a)) {
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
  a.walk = ActivationWalk::of(s);
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
    depthwise_grad_weight(a.q_x, a.qparams, a.q_g, s, plan.splits, plan.split_steps * kStep / kRun,
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
      default: grad_weight_wgmma(a, plan.tile, stream);
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
