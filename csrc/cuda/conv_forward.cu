// Forward on tensor cores: uint8 activations x int8 weights. See conv_rows.h for the product and
// conv_kernels.h for the op.

#include "cuda/conv_finish.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_pack.h"
#include "cuda/conv_rows.h"
#include "cuda/conv_statistics.h"
#include "cuda/conv_wgmma_launch.h"
#include "cuda/depthwise.h"
#include "cuda/workspace.h"

namespace daq_mm::cuda {

void forward(const ForwardArguments& f, const ConvSizes& s, const ConvPlan& plan, void* workspace,
             Stream stream) {
  const int64_t positions = s.n * s.out_positions();
  const int64_t values = positions * s.co;
  const Global<const float> qparams(f.x_qparams, 2);
  const Global<const float> bias = f.bias == nullptr ? Global<const float>()
                                                     : Global<const float>(f.bias, s.co);
  const Results results = make_results(f.y, f.type, values, s.co, s.co_per_group());
  const Global<const uint8_t> source(f.q_x, s.n * s.in_positions() * s.ci);
  const Global<const int8_t> q_w(f.q_w, s.co * s.ci_per_group() * s.taps());
  const Workspace w(workspace, plan.workspace_bytes);
  if (plan.depthwise) {
    DepthwiseArguments a;
    a.sizes = s;
    a.backward = false;
    a.source = source;
    a.q_w = q_w;
    a.qparams = qparams;
    a.step = Global<const float>(f.w_step, 1);
    a.step_by_channel = false;
    a.bias = bias;
    a.results = results;
    depthwise_rows(a, stream);
  } else {
    RowsArguments a;
    a.sizes = s;
    a.depth = static_cast<int>(s.ci_per_group());
    a.lanes = static_cast<int>(s.co_per_group());
    a.packed_row = packed_row_bytes(s, false, plan.span);
    a.splits = static_cast<int>(plan.splits);
    a.split_steps = static_cast<int>(plan.split_steps);
    a.source = source;
    const auto packed = w.at<uint8_t>(plan.packed_at, packed_bytes(s, false, plan.span));
    const auto sums = w.at<int32_t>(plan.sums_at, s.co);
    const auto pads = w.at<uint8_t>(plan.pads_at, kPadBytes);
    a.packed = read_only(packed);
    a.pads = read_only(pads);
    a.sums = read_only(sums);
    a.qparams = qparams;
    a.step = Global<const float>(f.w_step, 1);
    a.step_by_channel = false;
    a.bias = bias;
    a.results = results;
    a.gather = rows::gather_bytes(a.depth, source);
    const bool split = plan.splits > 1;
    if (split) a.partial = w.at<int32_t>(plan.partial_at, plan.splits * values);
    const int64_t row_tiles = ceil_div(positions, int64_t{tile_rows(plan.tile)});
    const bool in_epilogue = f.statistics != nullptr && !split;
    if (in_epilogue) a.statistics = w.at<float>(plan.statistics_at, row_tiles * 4 * s.co);
    if (is_wgmma(plan.tile)) {
      const auto tap_sums = w.at<int32_t>(plan.tap_sums_at, s.taps() * s.co);
      launch_rows_wgmma(a, false, plan, {q_w, packed, sums, tap_sums}, stream);
    } else {
      PackArguments pack;
      pack.q_w = q_w;
      pack.sizes = s;
      pack.tap_bytes = a.depth;
      pack.row_bytes = a.packed_row;
      pack.packed = packed;
      pack.sums = sums;
      pack.qparams = qparams;
      pack.pads = pads;
      pack_weights(pack, stream);
      rows::launch_rows<uint8_t>(a, plan.tile, stream);
    }
    if (in_epilogue) {
      reduce_statistics(w.place(plan.statistics_at), row_tiles, s.co, f.statistics, stream);
      return;
    }
    if (split) {
      FinishArguments finish;
      finish.partial = read_only(a.partial);
      finish.splits = plan.splits;
      finish.rows = positions;
      finish.columns = s.co;
      finish.sums = a.sums;
      finish.sum_splits = 1;
      finish.by_row = false;
      finish.qparams = qparams;
      finish.step = a.step;
      finish.many_steps = false;
      finish.bias = bias;
      finish.results = results;
      finish.taps = 0;
      finish_sums(finish, stream);
    }
  }
  if (f.statistics != nullptr) {
    pass_statistics(results, positions, s.co, w.place(plan.statistics_at), f.statistics, stream);
  }
}

}  // namespace daq_mm::cuda
