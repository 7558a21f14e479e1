// Grad-input on tensor cores: int8 gradients x int8 weights, a phase of input positions for each
// residue modulo the stride, so that no product with an inserted zero is computed. See conv_rows.h
// for the product and conv_kernels.h for the op.

#include "cuda/conv_finish.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_pack.h"
#include "cuda/conv_rows.h"
#include "cuda/conv_wgmma_launch.h"
#include "cuda/depthwise.h"
#include "cuda/workspace.h"

namespace daq_mm::cuda {

void grad_input(const GradInputArguments& g, const ConvSizes& s, const ConvPlan& plan,
                void* workspace, Stream stream) {
  const int64_t positions = s.n * s.in_positions();
  const int64_t values = positions * s.ci;
  const Global<const uint8_t> source(reinterpret_cast<const uint8_t*>(g.q_g),
                                     s.n * s.out_positions() * s.co);
  const Global<const int8_t> q_w(g.q_w, s.co * s.ci_per_group() * s.taps());
  const Global<const float> step(g.step, g.step_by_channel ? s.ci : 1);
  const Results results = make_results(g.dx, g.type, values, s.ci, s.ci_per_group());
  const Workspace w(workspace, plan.workspace_bytes);
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
  if (plan.splits > 1) a.partial = w.at<int32_t>(plan.partial_at, plan.splits * values);
  if (is_wgmma(plan.tile)) {
    launch_rows_wgmma(a, true, plan, {q_w, packed, {}, {}}, stream);
  } else {
    pack_weights(q_w, Global<const float>(), s, true, a.packed_row, packed, Global<int32_t>(), pads,
                 stream);
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

}  // namespace daq_mm::cuda
