// Measures tiles and splits of a product: see tune.h.

#include "cuda/tune.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include <c10/util/Exception.h>

#include "cuda/conv_wgmma.h"
#include "cuda/primitives/multiprocessors.h"
#include "cuda/primitives/stopwatch.h"

namespace daq_mm::cuda {
namespace {

constexpr TileShape kTiles[] = {TileShape::k128x128,      TileShape::k128x64,
                                TileShape::k64x64,        TileShape::kWgmma128x256,
                                TileShape::kWgmma128x128, TileShape::kWgmma128x64,
                                TileShape::kWgmma64x128, TileShape::kWgmma256x128};
constexpr size_t kMostCandidates = 12;
constexpr int64_t kMostSplits = 65535;             // a grid's
constexpr int64_t kLeastSteps = 4;                 // of a split: its pipeline has three stages
constexpr int64_t kMostMoreBytes = 256 << 20;      // of workspace, than the heuristic's

constexpr int kRounds = 3;                         // in each of which each candidate has a sample
constexpr double kSampleSeconds = 1e-3;            // of a sample: as many runs as it takes
constexpr int kMostRuns = 50;
constexpr double kHeadStart = 20e-6;               // a run's: longer than the host takes for it
// What wins by less may have won by noise; the heuristic's choice is then kept.
constexpr double kLeastGain = 0.02;

std::atomic<bool> tuning{false};

int64_t area(TileShape tile) { return int64_t{1} * tile_rows(tile) * tile_columns(tile); }

bool same(const PlanChoice& a, const PlanChoice& b) {
  return a.tile == b.tile && a.splits == b.splits;
}

// Whether a tile half as high or wide computes the same with less padding.
bool is_wasteful(const PlanKey& key, TileShape tile) {
  const ConvSizes& s = key.sizes;
  int64_t rows = s.co_per_group(), columns = s.ci_per_group() * s.taps();
  if (key.product == Product::kForward) {
    rows = s.n * s.out_positions();
    columns = s.co_per_group();
  } else if (key.product == Product::kGradInput) {
    rows = s.n * conv_map(s, true, 0).positions();
    columns = s.ci_per_group();
  }
  const bool has_lower = !is_wgmma(tile) || key.product == Product::kGradWeight;
  const bool high = has_lower && tile_rows(tile) > 64 && rows <= tile_rows(tile) / 2;
  return high || (tile_columns(tile) > 64 && columns <= tile_columns(tile) / 2);
}

// The index of the fastest plan, of which the first is the heuristic's; nothing if there was memory
// for none of them.
std::optional<size_t> fastest(const std::vector<ConvPlan>& plans, Stream stream,
                              const RunProduct& run) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> least(plans.size(), kNever);
  std::vector<int> runs(plans.size(), 1);
  // Candidates take turns, so that a change of the clock meets all of them. The first round, which
  // may load code, only tells how long they take.
  for (int round = 0; round <= kRounds; ++round) {
    for (size_t i = 0; i < plans.size(); ++i) {
      if (runs[i] == 0) continue;
      try {
        if (round == 0) run(plans[i]);
        const double seconds = device_seconds(stream, kHeadStart * runs[i], [&] {
          for (int r = 0; r < runs[i]; ++r) run(plans[i]);
        }) / runs[i];
        if (round == 0) {
          const double wanted = kSampleSeconds / std::max(seconds, 1e-9);
          runs[i] = static_cast<int>(std::clamp(wanted, 1.0, double{kMostRuns}));
        } else {
          least[i] = std::min(least[i], seconds);
        }
      } catch (const c10::OutOfMemoryError&) {  // for its workspace; another may need less
        least[i] = kNever;
        runs[i] = 0;
      }
    }
  }
  const size_t best = std::min_element(least.begin(), least.end()) - least.begin();
  if (least[best] == kNever) return std::nullopt;
  return least[best] < (1 - kLeastGain) * least[0] ? best : 0;
}

std::optional<PlanChoice> measured(const PlanKey& key, const Multiprocessors& processors,
                                   Stream stream, const RunProduct& run) {
  const std::vector<PlanChoice> candidates = plan_candidates(key, processors);
  if (candidates.size() == 1) return candidates[0];
  std::vector<ConvPlan> plans;
  for (const PlanChoice& choice : candidates) plans.push_back(plan_of(key, processors, &choice));
  const std::optional<size_t> best = fastest(plans, stream, run);
  if (!best.has_value()) return std::nullopt;
  return candidates[*best];
}

}  // namespace

ConvPlan plan_of(const PlanKey& key, const Multiprocessors& processors, const PlanChoice* choice) {
  switch (key.product) {
    case Product::kForward:
      return plan_forward(key.sizes, processors, key.wgmma, key.statistics, choice);
    case Product::kGradInput:
      return plan_grad_input(key.sizes, processors, key.wgmma, key.statistics, choice);
    default:
      return plan_grad_weight(key.sizes, processors, key.wgmma, choice);
  }
}

bool can_run(const PlanKey& key, const Multiprocessors& processors, const PlanChoice& choice) {
  if (choice.splits < 1 || choice.splits > kMostSplits) return false;
  if (std::find(std::begin(kTiles), std::end(kTiles), choice.tile) == std::end(kTiles)) {
    return false;
  }
  if (is_wgmma(choice.tile)) {
    const bool grad_weight = key.product == Product::kGradWeight;
    if (!has_tile(grad_weight, choice.tile)) return false;
    const char* reason = grad_weight
                             ? grad_weight_wgmma_refusal(key.sizes)
                             : wgmma_refusal(key.sizes, key.product == Product::kGradInput);
    if (!key.wgmma || reason != nullptr) return false;
  }
  return plan_of(key, processors, &choice).workspace_bytes <=
         plan_of(key, processors).workspace_bytes + kMostMoreBytes;
}

std::vector<PlanChoice> plan_candidates(const PlanKey& key, const Multiprocessors& processors) {
  const ConvPlan own = plan_of(key, processors);
  std::vector<PlanChoice> found{{own.tile, own.splits}};
  const auto add = [&](TileShape tile, int64_t splits) {
    PlanChoice choice{tile, std::max<int64_t>(splits, 1)};
    if (found.size() == kMostCandidates || !can_run(key, processors, choice)) return;
    const ConvPlan plan = plan_of(key, processors, &choice);
    choice.splits = plan.splits;  // as many as there really are
    if (plan.splits > own.splits && plan.split_steps < kLeastSteps) return;
    for (const PlanChoice& other : found) {
      if (same(choice, other)) return;
    }
    found.push_back(choice);
  };
  // So many splits give a tile as many blocks as the heuristic's, where that needs splits at all.
  const auto filling = [&](TileShape tile) {
    return own.splits == 1 ? 1 : ceil_div(own.splits * area(tile), area(own.tile));
  };
  // No splits need no second pass over the results; far fewer than fill the device, do not pay.
  const auto add_unsplit = [&](TileShape tile) {
    if (filling(tile) <= 4) add(tile, 1);
  };
  add(own.tile, 2 * own.splits);
  add(own.tile, own.splits / 2);
  add_unsplit(own.tile);
  std::vector<TileShape> others;
  for (const TileShape tile : kTiles) {
    if (tile != own.tile && !is_wasteful(key, tile)) others.push_back(tile);
  }
  for (const TileShape tile : others) add(tile, filling(tile));
  for (const TileShape tile : others) add_unsplit(tile);
  for (const TileShape tile : others) add(tile, 2 * filling(tile));
  for (const TileShape tile : others) add(tile, filling(tile) / 2);
  return found;
}

void run_product(const PlanKey& key, const PlanChoice* choice, int device, Stream stream,
                 const RunProduct& run) {
  const Multiprocessors processors = multiprocessors();
  const bool tune = tuning.load(std::memory_order_relaxed);
  std::optional<PlanChoice> known;
  if (choice != nullptr) {
    known = *choice;
  } else if ((tune || plan_table().any()) && !key.sizes.is_depthwise()) {
    device = std::max(device, 0);
    known = plan_table().find(device, key,
                              [&](const PlanChoice& c) { return can_run(key, processors, c); });
    if (!known.has_value() && tune && !is_capturing(stream)) {
      known = measured(key, processors, stream, run);
      if (known.has_value()) plan_table().insert(device, key, *known, true);
    }
  }
  run(plan_of(key, processors, known.has_value() ? &*known : nullptr));
}

bool tune_plans(bool value) { return tuning.exchange(value); }

}  // namespace daq_mm::cuda
