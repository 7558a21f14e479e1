// Tiles and splits that were measured, or loaded from a file, by device and product: what the
// products use before they ask the heuristic. One table a process; any thread may call.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/conv_kernels.h"

namespace daq_mm::cuda {

enum class Product : int { kForward, kGradInput, kGradWeight };

// All that a choice depends on, besides the device.
struct PlanKey {
  Product product = Product::kForward;
  ConvSizes sizes;
  bool statistics = false;  // taken of the results; grad-input: masked, and two sums of them
  bool wgmma = false;       // whether its tiles may be chosen
  int result_bytes = 4;     // of one result

  static constexpr size_t kNumbers = 26;
  using Numbers = std::array<int64_t, kNumbers>;
  Numbers numbers() const;
  static PlanKey of(const int64_t* numbers);
};

// A key, a tile and a number of splits in a row: an entry as plain numbers, in the order of
// FIELDS in daq_mm/autotune_cache.py.
constexpr size_t kPlanRow = PlanKey::kNumbers + 2;

class PlanTable {
 public:
  // Whether any device has an entry; cheap.
  bool any() const { return any_.load(std::memory_order_relaxed); }

  // The choice for a key. One that came from outside is looked at by `can_run` the first time that
  // it is wanted, and dropped if that says no.
  std::optional<PlanChoice> find(int device, const PlanKey& key,
                                 const std::function<bool(const PlanChoice&)>& can_run);

  // Replaces what there was. trusted: it has run.
  void insert(int device, const PlanKey& key, const PlanChoice& choice, bool trusted);

  // All entries of a device, rows of kPlanRow numbers one after another, sorted.
  std::vector<int64_t> rows(int device) const;

  void clear();

 private:
  struct Entry {
    PlanChoice choice;
    bool trusted;
  };
  mutable std::mutex mutex_;
  std::atomic<bool> any_{false};
  std::map<int, std::map<PlanKey::Numbers, Entry>> devices_;
};

PlanTable& plan_table();

}  // namespace daq_mm::cuda
