// Grad-input on tensor cores: int8 gradients x int8 weights, a phase of input positions for each
// residue modulo the stride, so that no product with an inserted zero is computed. See conv_rows.h
// for the product and conv_kernels.h for the op.

#include "cuda/conv_finish.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_pack.h"
#include "cuda/conv_rows.h"
#include "cuda/conv_statistics.h"
#include "cuda/conv_wgmma_launch.h"
#include "cuda/depthwise.h"
#include "cuda/glue.h"
#include "cuda/workspace.h"

namespace daq_mm::cuda {
namespace {

// Whether the tiles can reduce: only where no pass over sums of splits follows, and where chunks of
// 16 bytes lie side by side in all tensors, so that a chunk's channels share a byte of the mask.
bool tiles_reduce(const NormActReduce& r, const ConvPlan& plan, const Results& results) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kChunk == 0; };
  return !plan.depthwise && plan.splits == 1 && results.aligned && aligned(r.g2) && aligned(r.y);
}

ReduceArguments reduce_arguments(const NormActReduce& r, const ConvSizes& s, const ConvPlan& plan,
                                 const Results& results, const Workspace& w) {
  const int64_t positions = s.n * s.in_positions(), values = positions * s.ci;
  const int64_t bytes = values * result_bytes(results.type);
  const auto any = [](const void* p) { return static_cast<const uint8_t*>(p); };
  const int64_t row_tiles = grad_input_row_tiles(s, plan.tile);
  ReduceArguments a;
  if (r.g2 != nullptr) a.g2 = {any(r.g2), bytes};
  if (r.mask != nullptr) a.mask = {r.mask, positions * ((s.ci + 7) / 8)};
  if (r.mean != nullptr) {
    a.y = {any(r.y), r.grid == nullptr ? bytes : values};
    if (r.grid != nullptr) a.grid = {r.grid, 2 * s.ci};
    a.mean = {r.mean, s.ci};
    a.invstd = {r.invstd, s.ci};
  }
  a.sums = w.at<float>(plan.statistics_at, row_tiles * 2 * s.ci);
  a.row_tiles = row_tiles / phases(s, true);
  return a;
}

FloatType float_type(ResultType type) {
  switch (type) {
    case ResultType::kFloat32: return FloatType::float32;
    case ResultType::kBFloat16: return FloatType::bfloat16;
    case ResultType::kFloat16: return FloatType::float16;
    default: throw std::logic_error("int32 results are not reduced");
  }
}

// dx, reduced where the tiles can.
void products(const GradInputArguments& g, const ConvSizes& s, const ConvPlan& plan,
              const Results& results, bool reduce, const Workspace& w, Stream stream) {
  const int64_t positions = s.n * s.in_positions();
  const int64_t values = positions * s.ci;
  const Global<const uint8_t> source(reinterpret_cast<const uint8_t*>(g.q_g),
                                     s.n * s.out_positions() * s.co);
  const Global<const int8_t> q_w(g.q_w, s.co * s.ci_per_group() * s.taps());
  const Global<const float> step(g.step, g.step_by_channel ? s.ci : 1);
  if (plan.depthwise) {
    DepthwiseArguments a;
    a.sizes = s;
    a.backward = true;
    a.source = source;
    a.q_w = q_w;
    a.step = step;
    a.step_by_channel = g.step_by_channel;
    a.results = results;
    depthwise_rows(a, stream);
    return;
  }
  RowsArguments a;
  a.sizes = s;
  a.depth = static_cast<int>(s.co_per_group());
  a.lanes = static_cast<int>(s.ci_per_group());
  a.packed_row = packed_row_bytes(s, true, plan.span);
  a.splits = static_cast<int>(plan.splits);
  a.split_steps = static_cast<int>(plan.split_steps);
  a.source = source;
  const auto packed = w.at<uint8_t>(plan.packed_at, packed_bytes(s, true, plan.span));
  const auto pads = w.at<uint8_t>(plan.pads_at, kPadBytes);
  a.packed = read_only(packed);
  a.pads = read_only(pads);
  a.step = step;
  a.step_by_channel = g.step_by_channel;
  a.results = results;
  a.gather = rows::gather_bytes(a.depth, source);
  if (reduce) a.reduce = reduce_arguments(*g.reduce, s, plan, results, w);
  if (plan.splits > 1) a.partial = w.at<int32_t>(plan.partial_at, plan.splits * values);
  if (is_wgmma(plan.tile)) {
    launch_rows_wgmma(a, true, plan, {q_w, packed, {}, {}}, stream);
  } else {
    PackArguments pack;
    pack.q_w = q_w;
    pack.sizes = s;
    pack.backward = true;
    pack.tap_bytes = a.depth;
    pack.row_bytes = a.packed_row;
    pack.packed = packed;
    pack.pads = pads;
    pack_weights(pack, stream);
    rows::launch_rows<int8_t>(a, plan.tile, stream);
  }
  if (plan.splits == 1) return;
  FinishArguments finish;
  finish.partial = read_only(a.partial);
  finish.splits = plan.splits;
  finish.rows = positions;
  finish.columns = s.ci;
  finish.sum_splits = 0;
  finish.by_row = false;
  finish.step = step;
  finish.many_steps = g.step_by_channel;
  finish.results = results;
  finish.taps = 0;
  finish_sums(finish, stream);
}

}  // namespace

void grad_input(const GradInputArguments& g, const ConvSizes& s, const ConvPlan& plan,
                void* workspace, Stream stream) {
  const int64_t positions = s.n * s.in_positions();
  const Results results =
      make_results(g.dx, g.type, positions * s.ci, s.ci, s.ci_per_group());
  const Workspace w(workspace, plan.workspace_bytes);
  const bool reduce = g.reduce != nullptr && tiles_reduce(*g.reduce, plan, results);
  products(g, s, plan, results, reduce, w, stream);
  if (g.reduce == nullptr) return;
  void* const scratch = w.place(plan.statistics_at);
  if (reduce) {
    reduce_two_sums(scratch, grad_input_row_tiles(s, plan.tile), s.ci, g.reduce->sums, stream);
    return;
  }
  NormActReduce pass = *g.reduce;
  pass.g = pass.gz = g.dx;
  norm_act_reduce(pass, {positions, s.ci, float_type(g.type)}, scratch, stream);
}

}  // namespace daq_mm::cuda
