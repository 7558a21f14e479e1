// Chooses tiles and splits from the sizes of a product and the number of the device's processors,
// and lays out the workspace. No measurement stands behind the constants yet: they count blocks.

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/conv_kernels.h"

namespace daq_mm::cuda {
namespace {

constexpr int64_t kStepLength = 64;
constexpr int64_t kMostGrid = 65535;              // blocks on the second and third axis
constexpr int64_t kMostPartialBytes = 256 << 20;  // of splits that only fill the device
constexpr int64_t kLeastSteps = 8;                // a split's, so that its pipeline pays

// A product as tiles see it: `problems` independent ones of rows x columns, `steps` of 64 long.
struct Extent {
  int64_t rows;
  int64_t columns;
  int64_t problems;
  int64_t steps;
};

int64_t blocks_of(const Extent& e, TileShape tile) {
  return e.problems * ceil_div(e.rows, int64_t{tile_rows(tile)}) *
         ceil_div(e.columns, int64_t{tile_columns(tile)});
}

// The tile whose blocks' multiplications, padding and idle processors included, are fewest; small
// tiles pay for their lower reuse of operands.
TileShape chosen_tile(const Extent& e, int processors) {
  constexpr double kReuse[kTileShapes] = {1.0, 1.15, 1.3};
  constexpr int64_t kResident[kTileShapes] = {2, 3, 4};  // blocks a processor
  TileShape best = TileShape::k128x128;
  double least = 0.0;
  for (int t = 0; t < kTileShapes; ++t) {
    const auto tile = static_cast<TileShape>(t);
    const double area = tile_rows(tile) * tile_columns(tile);
    const int64_t room = kResident[t] * processors;
    const int64_t blocks = blocks_of(e, tile);
    // Below one wave, blocks have a processor to themselves, or contractions will be split.
    const int64_t rounded = blocks < room ? blocks : ceil_div(blocks, room) * room;
    const double cost = static_cast<double>(rounded) * area * kReuse[t];
    if (t == 0 || cost < least) {
      best = tile;
      least = cost;
    }
  }
  return best;
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, int64_t{256}) * 256; }

// Fills in tile and splits. longest: steps that int32 sums allow.
void choose(ConvPlan& plan, const Extent& e, int64_t result_values, int64_t most_splits,
            int processors, const PlanChoice* choice) {
  constexpr int64_t kLongest = kMostInt32Terms / kStepLength;
  const int64_t steps = std::max<int64_t>(e.steps, 1);
  int64_t splits = ceil_div(steps, kLongest);
  if (choice != nullptr) {
    plan.tile = choice->tile;
    splits = std::max(splits, choice->splits);
  } else {
    plan.tile = chosen_tile(e, processors);
    const int64_t wanted = 2 * processors / std::max<int64_t>(blocks_of(e, plan.tile), 1);
    const int64_t affordable = kMostPartialBytes / std::max<int64_t>(result_values * 4, 1);
    splits = std::max(splits, std::min({wanted, affordable, steps / kLeastSteps}));
  }
  splits = std::min(splits, std::min(steps, most_splits));
  plan.split_steps = ceil_div(steps, splits);
  plan.splits = ceil_div(steps, plan.split_steps);
  if (plan.split_steps > kLongest) {
    throw std::invalid_argument("a contraction of " + std::to_string(e.steps * kStepLength) +
                                " terms needs more splits than a grid has room for");
  }
}

int64_t place(ConvPlan& plan, int64_t bytes) {
  const int64_t at = plan.workspace_bytes;
  plan.workspace_bytes += aligned(bytes);
  return at;
}

void check_grid_axis(int64_t blocks, const char* what) {
  if (blocks > kMostGrid) {
    throw std::invalid_argument(std::to_string(blocks) + " " + what +
                                "; the CUDA kernels take at most 65535");
  }
}

ConvPlan plan_rows(const ConvSizes& s, bool backward, int processors, bool statistics,
                   const PlanChoice* choice) {
  ConvPlan plan;
  const int64_t channels = backward ? s.ci : s.co;
  const int64_t positions = s.n * (backward ? s.in_positions() : s.out_positions());
  check_grid_axis(phases(s, backward), "phases of the stride");
  plan.depthwise = s.is_depthwise() && s.taps() <= kMostInt32Terms;
  int64_t statistics_rows = ceil_div(positions, kStatisticsRows);
  if (!plan.depthwise) {
    check_grid_axis(s.groups, "groups");
    const Extent e{s.n * conv_map(s, backward, 0).positions(), channels / s.groups,
                   s.groups * phases(s, backward), packed_row_bytes(s, backward) / kStepLength};
    choose(plan, e, positions * channels, kMostGrid / s.groups, processors, choice);
    plan.packed_at = place(plan, packed_bytes(s, backward));
    plan.sums_at = place(plan, channels * 4);
    plan.pads_at = place(plan, kPadBytes);
    if (plan.splits > 1) plan.partial_at = place(plan, plan.splits * positions * channels * 4);
    statistics_rows =
        std::max(statistics_rows, ceil_div(positions, int64_t{tile_rows(plan.tile)}));
  }
  if (statistics) plan.statistics_at = place(plan, statistics_bytes(statistics_rows, channels));
  return plan;
}

}  // namespace

ConvPlan plan_forward(const ConvSizes& s, int processors, bool statistics,
                      const PlanChoice* choice) {
  return plan_rows(s, false, processors, statistics, choice);
}

ConvPlan plan_grad_input(const ConvSizes& s, int processors, const PlanChoice* choice) {
  return plan_rows(s, true, processors, false, choice);
}

ConvPlan plan_grad_weight(const ConvSizes& s, int processors, const PlanChoice* choice) {
  ConvPlan plan;
  const int64_t columns = s.ci_per_group() * s.taps();
  const int64_t steps = ceil_div(s.n * s.out_positions(), kStepLength);
  plan.depthwise = s.is_depthwise();
  Extent e{s.co_per_group(), columns, s.groups, steps};
  if (plan.depthwise) {
    e = {1, 1, s.taps() * ceil_div(s.ci, int64_t{32}), steps};  // one block each
  } else {
    check_grid_axis(s.groups, "groups");
  }
  choose(plan, e, s.co * columns, kMostGrid, processors, choice);
  plan.partial_at = place(plan, plan.splits * s.co * columns * 4);
  plan.sums_at = place(plan, plan.splits * s.co * 4);
  plan.pads_at = place(plan, kPadBytes);
  return plan;
}

}  // namespace daq_mm::cuda
