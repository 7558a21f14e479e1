// multiprocessors.h on the hardware; the emulator has its own.

#include "cuda/primitives/multiprocessors.h"

#ifndef DAQ_MM_EMULATED

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

namespace daq_mm::cuda {
namespace {

int attribute(cudaDeviceAttr which) {
  int device = 0;
  int value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

Multiprocessors multiprocessors() {
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

bool has_warpgroups() {
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

}  // namespace daq_mm::cuda

#endif
