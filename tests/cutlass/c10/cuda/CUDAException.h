// Stands in for PyTorch's header of this name, so that csrc/cuda is compiled as for a GPU without
// PyTorch's CUDA library, which a CPU build does not have.
#pragma once

#include <stdexcept>

#define C10_CUDA_CHECK(call)                                                           \
  do {                                                                                 \
    if ((call) != cudaSuccess) throw std::runtime_error("a CUDA call failed: " #call); \
  } while (0)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
