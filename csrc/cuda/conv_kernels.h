// Launch functions of the three integer products and what they need around them. Pointers are
// device memory; nothing here synchronizes, allocates or reads results back. The caller allocates
// the workspace that a plan asks for (256-byte aligned) and may reuse it in stream order.
//
//   forward      y  = float(sum of (q_x - zero point) * q_w) * (x step * w step) [+ bias]
//   grad-input   dx = float(sum of q_g * q_w) * step
//                and, if wanted: gz = mask ? dx [+ g2, rounded] : 0; sums of gz and of
//                gz * (y_hat - mean) * invstd
//   grad-weight  dw = float(sum of (q_x - zero point) * q_g) * (x step * g step of the row)
//
// Activations, gradients and results of the first two are channels-last; q_w (Co, Ci / groups,
// *kernel) is contiguous. Contractions of any length are exact: partial sums of at most
// kMostInt32Terms products in int32, added as int64.
#pragma once

#include <cstdint>

#include "cuda/conv_sizes.h"
#include "cuda/primitives/multiprocessors.h"
#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

enum class ResultType : int { kFloat32, kBFloat16, kFloat16, kInt32 };

inline int result_bytes(ResultType type) {
  return type == ResultType::kFloat32 || type == ResultType::kInt32 ? 4 : 2;
}

// 255 * 128 * 65536 < 2**31: no int32 sum of so many products overflows.
constexpr int64_t kMostInt32Terms = 65536;

// Output tiles; rows are positions (forward, grad-input) or output channels (grad-weight). The
// first three are of mma.sync, the others of wgmma, compute capability 9.0; of those, 128 x 256 is
// of forward and grad-input alone, 64 x 128 and 256 x 128 of grad-weight alone.
enum class TileShape : int {
  k128x128, k128x64, k64x64, kWgmma128x64, kWgmma128x128, kWgmma128x256, kWgmma64x128,
  kWgmma256x128
};
inline bool is_wgmma(TileShape tile) { return tile >= TileShape::kWgmma128x64; }
// Whether grad-weight, or the other two products, have a tile.
inline bool has_tile(bool grad_weight, TileShape tile) {
  if (tile == TileShape::kWgmma128x256) return !grad_weight;
  return grad_weight || (tile != TileShape::kWgmma64x128 && tile != TileShape::kWgmma256x128);
}
inline int tile_rows(TileShape tile) {
  switch (tile) {
    case TileShape::kWgmma256x128: return 256;
    case TileShape::k64x64:
    case TileShape::kWgmma64x128: return 64;
    default: return 128;
  }
}
inline int tile_columns(TileShape tile) {
  switch (tile) {
    case TileShape::kWgmma128x256: return 256;
    case TileShape::k128x128:
    case TileShape::kWgmma128x128:
    case TileShape::kWgmma64x128:
    case TileShape::kWgmma256x128: return 128;
    default: return 64;
  }
}

// What positions outside of the image read: 16 bytes of the zero point, then zeros.
constexpr int64_t kPadBytes = 64;

// Bytes of a row of packed weights for the phase with most taps: whole steps of 64 (conv_pack.h),
// or, for wgmma, each tap in whole spans (conv_rows_wgmma.cu).
inline int64_t packed_row_bytes(const ConvSizes& s, bool backward, int span) {
  int64_t taps = s.taps();
  if (backward) {
    taps = int64_t{1} * grad_input_most_taps(s, 0) * grad_input_most_taps(s, 1) *
           grad_input_most_taps(s, 2);
  }
  const int64_t depth = backward ? s.co_per_group() : s.ci_per_group();
  if (span > 0) return taps * ceil_div(depth, int64_t{span}) * span;
  return ceil_div(taps * depth, int64_t{64}) * 64;
}
inline int64_t packed_bytes(const ConvSizes& s, bool backward, int span) {
  return phases(s, backward) * (backward ? s.ci : s.co) * packed_row_bytes(s, backward, span);
}

// Statistics of results are taken in two stages: float32 by 128 rows (or a tile's), then float64
// by chunks of those, then all. Bytes of both stages' scratch memory for `rows` of the first and
// so many values a channel.
constexpr int64_t kStatisticsRows = 128;
inline int64_t statistics_chunks(int64_t rows) {
  const int64_t wanted = ceil_div(rows, int64_t{8});
  return wanted < 64 ? wanted : 64;
}
inline int64_t partial_statistics_bytes(int64_t rows, int64_t channels, int values = 4) {
  return ceil_div(rows * channels * 4 * values, int64_t{256}) * 256;
}
inline int64_t statistics_bytes(int64_t rows, int64_t channels, int values = 4) {
  return partial_statistics_bytes(rows, channels, values) +
         statistics_chunks(rows) * channels * 8 * values;
}
// Row tiles of all phases of grad-input: each has so many as the first one, which has the most.
inline int64_t grad_input_row_tiles(const ConvSizes& s, TileShape tile) {
  return phases(s, true) *
         ceil_div(s.n * conv_map(s, true, 0).positions(), int64_t{tile_rows(tile)});
}

// How a product is run: chosen by plan_*() from the sizes and the device.
struct ConvPlan {
  bool depthwise = false;   // the direct kernels instead of the tiles below
  TileShape tile = TileShape::k128x128;
  int span = 0;             // wgmma: bytes of a row a stage, 64 or 128
  int64_t splits = 1;       // of the contraction
  int64_t split_steps = 1;  // a split's length in steps of 64, or of the span

  // Workspace, in bytes from its start.
  int64_t packed_at = 0;    // forward, grad-input: int8 weights
  int64_t sums_at = 0;      // int32: sums of weights (forward) or gradients (grad-weight)
  int64_t tap_sums_at = 0;  // int32: sums of weights by tap (forward by wgmma)
  int64_t pads_at = 0;      // 64 bytes: what positions outside of the image read
  int64_t partial_at = 0;   // int32 partial sums, one result-sized block a split
  int64_t statistics_at = 0;
  int64_t workspace_bytes = 0;
};

// A tile and a number of splits that somebody else chose: a measurement (tune.h) or a test.
struct PlanChoice {
  TileShape tile;
  int64_t splits;
};
// By the choice, or by a heuristic if it is null. wgmma: whether its tiles may be chosen; choosing
// one that cannot compute the sizes raises std::invalid_argument.
ConvPlan plan_forward(const ConvSizes& sizes, const Multiprocessors& processors, bool wgmma,
                      bool statistics, const PlanChoice* choice = nullptr);
ConvPlan plan_grad_input(const ConvSizes& sizes, const Multiprocessors& processors, bool wgmma,
                         bool reduce, const PlanChoice* choice = nullptr);
ConvPlan plan_grad_weight(const ConvSizes& sizes, const Multiprocessors& processors, bool wgmma,
                          const PlanChoice* choice = nullptr);

struct ForwardArguments {
  const uint8_t* q_x;
  const float* x_qparams;    // step, zero point
  const int8_t* q_w;
  const float* w_step;       // one
  const float* bias;         // (Co,) or null; not for int32
  void* y;
  ResultType type;
  double* statistics;        // (4, Co) sum, sum of squares, minimum, maximum of y as stored; or null
};
void forward(const ForwardArguments& arguments, const ConvSizes& sizes, const ConvPlan& plan,
             void* workspace, Stream stream);

struct NormActReduce;  // glue.h

struct GradInputArguments {
  const int8_t* q_g;
  const int8_t* q_w;
  const float* step;         // (Ci,) if step_by_channel, else one
  bool step_by_channel;
  void* dx;
  ResultType type;
  // Makes dx gz and takes its sums, as norm_act_reduce does of g = gz = dx; null: leaves dx as it
  // is. Not for int32.
  const NormActReduce* reduce = nullptr;
};
void grad_input(const GradInputArguments& arguments, const ConvSizes& sizes, const ConvPlan& plan,
                void* workspace, Stream stream);

struct GradWeightArguments {
  const uint8_t* q_x;
  const float* x_qparams;
  const int8_t* q_g;
  const float* g_step;       // (Co,)
  void* dw;
  ResultType type;
  bool channels_last;        // dw (Co, *kernel, Ci / groups) instead of (Co, Ci / groups, *kernel)
};
void grad_weight(const GradWeightArguments& arguments, const ConvSizes& sizes, const ConvPlan& plan,
                 void* workspace, Stream stream);

}  // namespace daq_mm::cuda
