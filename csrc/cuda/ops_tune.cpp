// Ops that steer the choice of tiles and splits (tune.h), for daq_mm/autotune.py. They exist in
// builds with CUDA alone.
//
//   tune_plans(bool value) -> bool      measure products that have no entry; what was so before
//   plan_table(int device) -> int[]     entries, rows of kPlanRow numbers (plan_table.h)
//   load_plans(int device, int[] rows)  adds entries, and replaces those of the same products
//   clear_plans()                       forgets all entries of all devices
//   kernels_version() -> int            entries of another version are not worth loading

#include <c10/util/Exception.h>
#include <torch/library.h>

#include "cuda/device.h"
#include "cuda/tune.h"

namespace daq_mm::cuda {
namespace {

// To be raised when a change of the kernels, of their tiles or of an entry's numbers makes earlier
// measurements wrong. An old entry cannot make results wrong, only slow; so a number that somebody
// raises will do, and a cache outlives changes that leave the speed alone.
constexpr int64_t kKernelsVersion = 3;

std::vector<int64_t> plan_table_op(int64_t device) {
  return plan_table().rows(static_cast<int>(device));
}

void load_plans(int64_t device, at::IntArrayRef rows) {
  TORCH_CHECK_VALUE(rows.size() % kPlanRow == 0, "rows has ", rows.size(),
                    " numbers; expected a multiple of ", kPlanRow);
  for (size_t i = 0; i < rows.size(); i += kPlanRow) {
    const int64_t* row = rows.data() + i;
    const PlanChoice choice{static_cast<TileShape>(row[PlanKey::kNumbers]),
                            row[PlanKey::kNumbers + 1]};
    plan_table().insert(static_cast<int>(device), PlanKey::of(row), choice, false);
  }
}

void clear_plans() { plan_table().clear(); }
int64_t kernels_version() { return kKernelsVersion; }

}  // namespace
}  // namespace daq_mm::cuda

TORCH_LIBRARY_FRAGMENT(DAQ_MM_CUDA_LIBRARY, m) {
  using namespace daq_mm::cuda;
  m.def("tune_plans(bool value) -> bool", &tune_plans);
  m.def("plan_table(int device) -> int[]", &plan_table_op);
  m.def("load_plans(int device, int[] rows) -> ()", &load_plans);
  m.def("clear_plans() -> ()", &clear_plans);
  m.def("kernels_version() -> int", &kernels_version);
}
