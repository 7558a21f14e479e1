// Chooses tiles and splits from the sizes of a product and the number of the device's processors,
// and lays out the workspace. No measurement stands behind the constants yet: they count blocks.

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/conv_kernels.h"
#include "cuda/conv_wgmma.h"
#include "cuda/depthwise_sizes.h"
#include "cuda/glue.h"

namespace daq_mm::cuda {
namespace {

constexpr int64_t kStepLength = 64;
constexpr int64_t kStages = 3;                    // in shared memory, of mma.sync's tiles
constexpr int64_t kMostGrid = 65535;              // blocks on the second and third axis
constexpr int64_t kMostPartialBytes = 256 << 20;  // of splits that only fill the device
constexpr int64_t kLeastSteps = 8;                // a split's, so that its pipeline pays

// How far splits go to fill the device: to so many blocks a processor, of so many steps at least.
struct Filling {
  int64_t blocks = 2;
  int64_t least_steps = kLeastSteps;
};

// Where channels have to be padded by more than this, mma.sync's chunks of 16 win.
constexpr double kMostWgmmaPadding = 1.5;

// A product as tiles see it: `problems` independent ones of rows x columns, `steps` stages long.
struct Extent {
  int64_t rows;
  int64_t columns;
  int64_t problems;
  int64_t steps;
  int64_t step;  // terms of a stage
};

// Small tiles pay for their lower reuse of operands; `resident` blocks share a processor, if its
// shared memory is enough for so many (fewer on compute capability 7.5, 8.6 and 8.9). The
// epilogue of a tile takes as long as so many terms of its contraction: counted instructions, where
// the tile is alone on a processor, a quarter of them where another one multiplies meanwhile. (Of
// mma.sync, whose terms last longer, and whose tiles all have company, it is left out.)
struct Candidate {
  TileShape tile;
  double reuse;
  int64_t resident;
  double epilogue;
};
const std::vector<Candidate> kMmaTiles = {{TileShape::k128x128, 1.0, 2, 0},
                                          {TileShape::k128x64, 1.15, 3, 0},
                                          {TileShape::k64x64, 1.3, 4, 0}};
const std::vector<Candidate> kWgmmaTiles = {{TileShape::kWgmma128x256, 1.0, 1, 512},
                                            {TileShape::kWgmma128x128, 1.1, 2, 128},
                                            {TileShape::kWgmma128x64, 1.4, 2, 128}};
// The widest tile pays for long contractions alone, and exists for spans of 128 alone.
const std::vector<Candidate> kNarrowWgmmaTiles(kWgmmaTiles.begin() + 1, kWgmmaTiles.end());
// Of grad-weight, whose operands pass through shared memory several times: its bytes, counted. The
// largest has nobody to fill its gaps.
const std::vector<Candidate> kWgmmaGradTiles = {{TileShape::kWgmma128x128, 1.0, 2, 0},
                                                {TileShape::kWgmma256x128, 0.9, 1, 0},
                                                {TileShape::kWgmma128x64, 1.3, 2, 0},
                                                {TileShape::kWgmma64x128, 1.4, 3, 0}};

int64_t blocks_of(const Extent& e, TileShape tile) {
  return e.problems * ceil_div(e.rows, int64_t{tile_rows(tile)}) *
         ceil_div(e.columns, int64_t{tile_columns(tile)});
}

int64_t resident_blocks(const Candidate& c, const Multiprocessors& processors) {
  constexpr int64_t kOwn = 1024;  // what each block takes besides
  const int64_t bytes = is_wgmma(c.tile)
                            ? 0  // of one kind of processor alone, for which `resident` is right
                            : kStages * kStepLength * (tile_rows(c.tile) + tile_columns(c.tile));
  return std::clamp<int64_t>(processors.shared_bytes / (bytes + kOwn), 1, c.resident);
}

// The tile whose blocks' multiplications, padding and idle processors included, are fewest.
TileShape chosen_tile(const Extent& e, const std::vector<Candidate>& candidates,
                      const Multiprocessors& processors) {
  TileShape best = candidates[0].tile;
  double least = 0.0;
  for (const Candidate& c : candidates) {
    const double area = tile_rows(c.tile) * tile_columns(c.tile);
    const int64_t room = resident_blocks(c, processors) * processors.count;
    const int64_t blocks = blocks_of(e, c.tile);
    // Below one wave, blocks have a processor to themselves, or contractions will be split.
    const int64_t rounded = blocks < room ? blocks : ceil_div(blocks, room) * room;
    const double terms = c.reuse * static_cast<double>(e.steps * e.step) + c.epilogue;
    const double cost = static_cast<double>(rounded) * area * terms;
    if (c.tile == candidates[0].tile || cost < least) {
      best = c.tile;
      least = cost;
    }
  }
  return best;
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, int64_t{256}) * 256; }

// Fills in tile and splits. longest: steps that int32 sums allow.
void choose(ConvPlan& plan, const Extent& e, int64_t result_values, int64_t most_splits,
            const Multiprocessors& processors, const std::vector<Candidate>& candidates,
            const PlanChoice* choice,
            const Filling& filling = {}) {
  constexpr int64_t kLongest = kMostInt32Terms / kStepLength;
  const int64_t steps = std::max<int64_t>(e.steps, 1);
  int64_t splits = ceil_div(steps, kLongest);
  if (choice != nullptr) {
    plan.tile = choice->tile;
    splits = std::max(splits, choice->splits);
  } else {
    plan.tile = chosen_tile(e, candidates, processors);
    const int64_t wanted =
        filling.blocks * processors.count / std::max<int64_t>(blocks_of(e, plan.tile), 1);
    const int64_t affordable = kMostPartialBytes / std::max<int64_t>(result_values * 4, 1);
    splits = std::max(splits, std::min({wanted, affordable, steps / filling.least_steps}));
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

// Whether the plan uses wgmma: as the choice says, or where it can (`refusal` is null) and pays.
bool uses_wgmma(bool wgmma, const char* refusal, bool pays, const PlanChoice* choice) {
  if (choice == nullptr) return wgmma && refusal == nullptr && pays;
  if (!is_wgmma(choice->tile)) return false;
  const char* reason = wgmma ? refusal : "this device or address";
  if (reason == nullptr) return true;
  throw std::invalid_argument(std::string("a tile of wgmma was chosen, which cannot take ") +
                              reason);
}

ConvPlan plan_rows(const ConvSizes& s, bool backward, const Multiprocessors& processors, bool wgmma,
                   bool statistics, const PlanChoice* choice) {
  ConvPlan plan;
  const int64_t channels = backward ? s.ci : s.co;
  const int64_t positions = s.n * (backward ? s.in_positions() : s.out_positions());
  check_grid_axis(phases(s, backward), "phases of the stride");
  plan.depthwise = s.is_depthwise() && s.taps() <= kMostInt32Terms;
  int64_t statistics_rows = ceil_div(positions, kStatisticsRows);
  if (!plan.depthwise) {
    check_grid_axis(s.groups, "groups");
    if (uses_wgmma(wgmma, wgmma_refusal(s, backward),
                   wgmma_padding(s, backward) <= kMostWgmmaPadding, choice)) {
      const bool widest = choice != nullptr && choice->tile == TileShape::kWgmma128x256;
      plan.span = widest ? 128 : wgmma_span(backward ? s.co_per_group() : s.ci_per_group());
    }
    const int64_t step = plan.span > 0 ? plan.span : kStepLength;
    const Extent e{s.n * conv_map(s, backward, 0).positions(), channels / s.groups,
                   s.groups * phases(s, backward),
                   packed_row_bytes(s, backward, plan.span) / step, step};
    choose(plan, e, positions * channels, kMostGrid / s.groups, processors,
           plan.span == 128 ? kWgmmaTiles : plan.span == 64 ? kNarrowWgmmaTiles : kMmaTiles,
           choice);
    plan.packed_at = place(plan, packed_bytes(s, backward, plan.span));
    plan.sums_at = place(plan, channels * 4);
    if (plan.span > 0 && !backward) plan.tap_sums_at = place(plan, s.taps() * channels * 4);
    plan.pads_at = place(plan, kPadBytes);
    if (plan.splits > 1) plan.partial_at = place(plan, plan.splits * positions * channels * 4);
    statistics_rows =
        std::max(statistics_rows, ceil_div(positions, int64_t{tile_rows(plan.tile)}));
  }
  if (!statistics) return plan;
  int64_t bytes = statistics_bytes(statistics_rows, channels);
  if (backward) {
    // Of the tiles, or of norm_act_reduce, which follows where tiles cannot reduce.
    bytes = norm_act_reduce_workspace({positions, channels});
    if (!plan.depthwise) {
      const int64_t rows = grad_input_row_tiles(s, plan.tile);
      bytes = std::max(bytes, statistics_bytes(rows, channels, 2));
    }
  }
  plan.statistics_at = place(plan, bytes);
  return plan;
}

}  // namespace

ConvPlan plan_forward(const ConvSizes& s, const Multiprocessors& processors, bool wgmma,
                      bool statistics, const PlanChoice* choice) {
  return plan_rows(s, false, processors, wgmma, statistics, choice);
}

// Splits keep the tiles from reducing: their sums are finished by a pass, and norm_act_reduce follows
// by another one. To the 8 bytes a result and split that int32 partial sums are written and read
// with, 16 at least, that adds 4 (bfloat16: dx is written and read once more), a quarter at most. A
// rule that takes splits only where blocks would leave half of the processors idle is not so fine;
// so the splits are those of plain grad-input, and the autotuner measures both ways.
ConvPlan plan_grad_input(const ConvSizes& s, const Multiprocessors& processors, bool wgmma,
                         bool reduce, const PlanChoice* choice) {
  return plan_rows(s, true, processors, wgmma, reduce, choice);
}

ConvPlan plan_grad_weight(const ConvSizes& s, const Multiprocessors& processors, bool wgmma,
                          const PlanChoice* choice) {
  ConvPlan plan;
  const int64_t columns = s.ci_per_group() * s.taps();
  const int64_t steps = ceil_div(s.n * s.out_positions(), kStepLength);
  plan.depthwise = s.is_depthwise();
  Extent e{s.co_per_group(), columns, s.groups, steps, kStepLength};
  Filling filling;
  if (plan.depthwise) {
    // Steps are whole runs, up to 64 positions. A block for each part of the taps and channels has
    // no pipeline to fill; a run for each of its threads will do.
    const auto tiles = DepthwiseTiles::of(s.ci);
    constexpr int64_t kStepRuns = kStepLength / kRun;
    e = {1, 1, tap_blocks(s) * tiles.tiles, ceil_div(runs_of_results(s), kStepRuns), kStepLength};
    filling = {2 * kGradWeightResident, ceil_div(int64_t{tiles.down}, kStepRuns)};
  } else {
    check_grid_axis(s.groups, "groups");
  }
  const char* refusal = grad_weight_wgmma_refusal(s);
  const bool by_wgmma = !plan.depthwise && uses_wgmma(wgmma, refusal, true, choice);
  choose(plan, e, s.co * columns, kMostGrid, processors, by_wgmma ? kWgmmaGradTiles : kMmaTiles,
         choice, filling);
  plan.partial_at = place(plan, plan.splits * s.co * columns * 4);
  plan.sums_at = place(plan, plan.splits * s.co * 4);
  plan.pads_at = place(plan, kPadBytes);
  return plan;
}

}  // namespace daq_mm::cuda
