// Launches conv_rows_wgmma.h: tensor maps, packed weights with the sums of each tap, the kernel.

#include "cuda/conv_rows_wgmma.h"

#include "cuda/conv_pack.h"
#include "cuda/conv_wgmma_launch.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {
namespace {

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
  WgmmaArguments a;
  a.rows = r;
  a.spans = ceil_div(r.depth, plan.span);
  PackArguments pack;
  pack.q_w = operands.q_w;
  pack.sizes = s;
  pack.backward = backward;
  pack.tap_bytes = a.spans * plan.span;
  pack.row_bytes = r.packed_row;
  pack.packed = operands.packed;
  pack.sums = operands.sums;
  if (!backward && has_padding(s, backward)) {
    pack.tap_sums = operands.tap_sums;
    a.tap_sums = read_only(operands.tap_sums);
  }
  pack_weights(pack, stream);

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
