// Which tile and splits a product runs with: those of the table, else those that a measurement
// finds, where measuring is switched on, else those of the heuristic (conv_plan.cpp).
//
// A measurement runs each candidate on the operands at hand, into the results at hand: all
// candidates write the same bits (statistics: the same up to the order of their float32 sums), and
// the chosen one runs last. It is the only thing in the CUDA ops that waits for the device. While
// the stream is being captured into a CUDA graph, the table is used and nothing is measured.
#pragma once

#include <functional>
#include <vector>

#include "cuda/plan_table.h"
#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// Launches a product by a plan, with a workspace of its own.
using RunProduct = std::function<void(const ConvPlan&)>;

// Runs the product by the choice given, or else by the one that is best known. device: index of
// the current device; a negative one (the emulator's) counts as 0.
void run_product(const PlanKey& key, const PlanChoice* choice, int device, Stream stream,
                 const RunProduct& run);

// The plan of a key, by the heuristic if the choice is null.
ConvPlan plan_of(const PlanKey& key, const Multiprocessors& processors,
                 const PlanChoice* choice = nullptr);

// What is worth measuring, the heuristic's choice first: at most 12.
std::vector<PlanChoice> plan_candidates(const PlanKey& key, const Multiprocessors& processors);

// Whether a choice can run the product, in not much more memory than the heuristic's.
bool can_run(const PlanKey& key, const Multiprocessors& processors, const PlanChoice& choice);

// Whether products without an entry are measured; returns what was so before. Off from the start.
bool tune_plans(bool value);

}  // namespace daq_mm::cuda
