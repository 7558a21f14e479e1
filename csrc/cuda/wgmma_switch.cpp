// Op use_wgmma(bool): on compute capability 9.0, whether the three products may run by wgmma (as
// they do from the start) or must by mma.sync, which benchmarks and tests compare. For the
// whole process; returns what was said before. Op has_wgmma(): whether products whose sizes allow
// it would run so on the current device. The ops exist in builds with CUDA alone.

#include "cuda/wgmma_switch.h"

#include <atomic>
#include <cstdint>

#include <torch/library.h>

#include "cuda/device.h"
#include "cuda/primitives/multiprocessors.h"

namespace daq_mm::cuda {
namespace {

std::atomic<bool> allowed{true};

bool use_wgmma(bool value) { return allowed.exchange(value); }

bool has_wgmma() { return may_use_wgmma(nullptr); }

}  // namespace

bool may_use_wgmma(const void* source) {
  return allowed && reinterpret_cast<uintptr_t>(source) % 16 == 0 && has_warpgroups() &&
         has_wgmma_code();
}

}  // namespace daq_mm::cuda

TORCH_LIBRARY_FRAGMENT(DAQ_MM_CUDA_LIBRARY, m) {
  m.def("use_wgmma(bool value) -> bool", &daq_mm::cuda::use_wgmma);
  m.def("has_wgmma() -> bool", &daq_mm::cuda::has_wgmma);
}
