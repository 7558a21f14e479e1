// multiprocessors() on the hardware; the emulator has its own.

#include "cuda/primitives/multiprocessors.h"

#ifndef DAQ_MM_EMULATED

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

namespace daq_mm::cuda {

int multiprocessors() {
  int device = 0;
  int count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace daq_mm::cuda

#endif
