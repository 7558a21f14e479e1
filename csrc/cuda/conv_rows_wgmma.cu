// Launches conv_rows_wgmma.h: tensor maps, packed weights with the sums of each tap, the kernel.

#include "cuda/conv_rows_wgmma.h"

#include "cuda/conv_pack.h"
#include "cuda/conv_wgmma_launch.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackWarps = kPackThreads / kWarp;
constexpr int64_t kMostBlocks = 65535;

// packed[phase][group][lane][tap of the phase][padded depth] = q_w, zeros behind each tap; a warp a
// row. Forward: sums of each row, and of each tap of it.
DAQ_KERNEL(kPackThreads, 2)
void pack_by_tap_kernel(Global<const int8_t> q_w, ConvSizes sizes, bool backward, int padded_depth,
                        int64_t row_bytes, Global<uint8_t> packed, Global<int32_t> sums,
                        Global<int32_t> tap_sums) {
  const int64_t inputs = sizes.ci_per_group(), outputs = sizes.co_per_group();
  const int depth = static_cast<int>(backward ? outputs : inputs);
  const int64_t lanes = backward ? inputs : outputs;
  const int64_t rows = phases(sizes, backward) * sizes.groups * lanes;
  const int64_t taps = sizes.taps();
  for (int64_t row = block_x() * kPackWarps + warp_index(); row < rows;
       row += grid_x() * kPackWarps) {
    const int64_t lane = row % lanes, group = row / lanes % sizes.groups;
    const ConvMap map = conv_map(sizes, backward, row / lanes / sizes.groups);
    int32_t total = 0;
    for (int t = 0; t < map.taps(); ++t) {
      int64_t tap = 0, scale = 1;
      int rest = t;
      for (int axis = 2; axis >= 0; --axis) {
        const AxisMap& along = map.axis[axis];
        tap += (along.first_tap + rest % along.taps * along.tap_step) * scale;
        rest /= along.taps;
        scale *= sizes.kernel[axis];
      }
      int32_t sum = 0;
      for (int channel = lane_index(); channel < padded_depth; channel += kWarp) {
        int8_t value = 0;
        if (channel < depth) {
          const int64_t output = group * outputs + (backward ? channel : lane);
          const int64_t input = backward ? lane : channel;
          value = q_w.load((output * inputs + input) * taps + tap);
        }
        packed.store(row * row_bytes + t * padded_depth + channel, static_cast<uint8_t>(value));
        sum += value;
      }
      if (backward) continue;
      sum = reduce_warp(sum, sum_of<int32_t>);
      total += sum;
      if (lane_index() == 0 && !tap_sums.is_null()) tap_sums.store(t * sizes.co + row, sum);
    }
    if (!backward && lane_index() == 0) sums.store(row, total);
  }
}

template <typename source_t, int columns, int span>
void launch_tile(const WgmmaArguments& a, Stream stream) {
  using tile_t = rows::WgmmaTile<columns, span>;
  constexpr bool kBackward = rows::kBackwardOf<source_t>;
  const RowsArguments& r = a.rows;
  const int64_t rows = r.sizes.n * conv_map(r.sizes, kBackward, 0).positions();
  const Grid grid{ceil_div(rows, int64_t{tile_t::kRows}) * ceil_div(r.lanes, tile_t::kColumns),
                  phases(r.sizes, kBackward), r.sizes.groups * r.splits};
  if constexpr (kBackward) {
    if (!r.reduce.sums.is_null()) {
      launch(rows::rows_wgmma_kernel<source_t, tile_t, true>, grid, tile_t::kAllThreads,
             tile_t::kLaunchBytes, stream, a);
      return;
    }
  }
  launch(rows::rows_wgmma_kernel<source_t, tile_t, false>, grid, tile_t::kAllThreads,
         tile_t::kLaunchBytes, stream, a);
}

template <typename source_t>
void launch_shape(const WgmmaArguments& a, TileShape shape, int span, Stream stream) {
  const bool wide = span == 128;
  switch (shape) {
    case TileShape::kWgmma128x64:
      return wide ? launch_tile<source_t, 64, 128>(a, stream)
                  : launch_tile<source_t, 64, 64>(a, stream);
    case TileShape::kWgmma128x128:
      return wide ? launch_tile<source_t, 128, 128>(a, stream)
                  : launch_tile<source_t, 128, 64>(a, stream);
    case TileShape::kWgmma128x256:
      if (wide) return launch_tile<source_t, 256, 128>(a, stream);
      [[fallthrough]];
    default: throw std::logic_error("not a tile and span of wgmma");
  }
}

}  // namespace

bool has_wgmma_code() {
  using tile_t = rows::WgmmaTile<64, 128>;
  static const bool found =
      has_code_for(rows::rows_wgmma_kernel<uint8_t, tile_t, false>, tile_t::kAllThreads);
  return found;
}

void launch_rows_wgmma(const RowsArguments& r, bool backward, const ConvPlan& plan,
                       const WgmmaOperands& operands, Stream stream) {
  const ConvSizes& s = r.sizes;
  const int64_t blocks =
      ceil_div(phases(s, backward) * (backward ? s.ci : s.co), int64_t{kPackWarps});
  WgmmaArguments a;
  a.rows = r;
  a.spans = ceil_div(r.depth, plan.span);
  if (!backward && has_padding(s, backward)) a.tap_sums = read_only(operands.tap_sums);
  launch(pack_by_tap_kernel, Grid{blocks < kMostBlocks ? blocks : kMostBlocks}, kPackThreads, 0,
         stream, operands.q_w, s, backward, a.spans * plan.span, r.packed_row, operands.packed,
         operands.sums, a.tap_sums.is_null() ? Global<int32_t>() : operands.tap_sums);

  MatrixMapping weights;
  weights.data = r.packed.host_pointer();
  weights.rows = phases(s, backward) * s.groups * r.lanes;
  weights.columns = r.packed_row;
  weights.box_rows = tile_columns(plan.tile);
  weights.span = plan.span;
  a.weights = make_tensor_map(weights);
  a.axes = walk_axes(s);
  for (int phase = 0; phase < phases(s, backward); ++phase) {
    const ConvMap map = conv_map(s, backward, phase);
    if (map.positions() == 0 || map.taps() == 0) continue;  // no copies
    a.source[phase] =
        make_tensor_map(walk_of(s, backward, phase, plan.span, r.source.host_pointer()));
  }
  if (backward) {
    launch_shape<int8_t>(a, plan.tile, plan.span, stream);
  } else {
    launch_shape<uint8_t>(a, plan.tile, plan.span, stream);
  }
}

}  // namespace daq_mm::cuda
