// The table of measured plans: see plan_table.h.

#include "cuda/plan_table.h"

namespace daq_mm::cuda {

PlanKey::Numbers PlanKey::numbers() const {
  Numbers found{};
  size_t i = 0;
  found[i++] = static_cast<int64_t>(product);
  for (const int64_t value : {sizes.n, sizes.ci, sizes.co, sizes.groups}) found[i++] = value;
  for (const auto* axes : {&sizes.in, &sizes.out, &sizes.kernel, &sizes.stride, &sizes.dilation,
                           &sizes.pad}) {
    for (const int value : *axes) found[i++] = value;
  }
  found[i++] = statistics;
  found[i++] = wgmma;
  found[i++] = result_bytes;
  return found;
}

PlanKey PlanKey::of(const int64_t* numbers) {
  PlanKey key;
  key.product = static_cast<Product>(*numbers++);
  for (int64_t* value : {&key.sizes.n, &key.sizes.ci, &key.sizes.co, &key.sizes.groups}) {
    *value = *numbers++;
  }
  for (auto* axes : {&key.sizes.in, &key.sizes.out, &key.sizes.kernel, &key.sizes.stride,
                     &key.sizes.dilation, &key.sizes.pad}) {
    for (int& value : *axes) value = static_cast<int>(*numbers++);
  }
  key.statistics = *numbers++ != 0;
  key.wgmma = *numbers++ != 0;
  key.result_bytes = static_cast<int>(*numbers++);
  return key;
}

std::optional<PlanChoice> PlanTable::find(
    int device, const PlanKey& key, const std::function<bool(const PlanChoice&)>& can_run) {
  const std::lock_guard lock(mutex_);
  const auto entries = devices_.find(device);
  if (entries == devices_.end()) return std::nullopt;
  const auto found = entries->second.find(key.numbers());
  if (found == entries->second.end()) return std::nullopt;
  Entry& entry = found->second;
  if (!entry.trusted && !can_run(entry.choice)) {
    entries->second.erase(found);
    return std::nullopt;
  }
  entry.trusted = true;
  return entry.choice;
}

void PlanTable::insert(int device, const PlanKey& key, const PlanChoice& choice, bool trusted) {
  const std::lock_guard lock(mutex_);
  devices_[device].insert_or_assign(key.numbers(), Entry{choice, trusted});
  any_ = true;
}

std::vector<int64_t> PlanTable::rows(int device) const {
  const std::lock_guard lock(mutex_);
  std::vector<int64_t> rows;
  const auto entries = devices_.find(device);
  if (entries == devices_.end()) return rows;
  for (const auto& [numbers, entry] : entries->second) {
    rows.insert(rows.end(), numbers.begin(), numbers.end());
    rows.push_back(static_cast<int64_t>(entry.choice.tile));
    rows.push_back(entry.choice.splits);
  }
  return rows;
}

void PlanTable::clear() {
  const std::lock_guard lock(mutex_);
  devices_.clear();
  any_ = false;
}

PlanTable& plan_table() {
  static PlanTable table;
  return table;
}

}  // namespace daq_mm::cuda
