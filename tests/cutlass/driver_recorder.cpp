// Stands in for the driver (cuTensorMapEncode*) and for the runtime's look-up of its functions.
//
// This file and csrc/cuda/tensor_map.cpp are compiled as for a GPU, the rest of the program for the
// emulator. Mappings are the same type to both; a TensorMap is not, and never passes between them.

#include "driver_recorder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <cuda.h>
#include <cuda_runtime_api.h>

EncodeArguments last_walk, last_matrix;

namespace {

EncodeArguments common(CUtensorMapDataType type, cuuint32_t rank, const void* address,
                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* steps,
                       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                       CUtensorMapFloatOOBfill fill) {
  if (rank < 1 || rank > 5) std::abort();
  EncodeArguments a;
  a.type = type;
  a.rank = static_cast<int>(rank);
  a.address = address;
  std::copy_n(sizes, rank, a.sizes);
  std::copy_n(strides, rank - 1, a.strides);
  std::copy_n(steps, rank, a.steps);
  a.interleave = interleave;
  a.swizzle = swizzle;
  a.fill = fill;
  return a;
}

}  // namespace

extern "C" CUresult CUDAAPI cuTensorMapEncodeIm2col(
    CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address,
    const cuuint64_t* sizes, const cuuint64_t* strides, const int* lower, const int* upper,
    cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* steps,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
    CUtensorMapFloatOOBfill fill) {
  last_walk = common(type, rank, address, sizes, strides, steps, interleave, swizzle, fill);
  std::copy_n(lower, rank - 2, last_walk.lower);
  std::copy_n(upper, rank - 2, last_walk.upper);
  last_walk.channels = channels;
  last_walk.pixels = pixels;
  return CUDA_SUCCESS;
}

extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(
    CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address,
    const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
    const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  last_matrix = common(type, rank, address, sizes, strides, steps, interleave, swizzle, fill);
  std::copy_n(box, rank, last_matrix.box);
  return CUDA_SUCCESS;
}

namespace {

cudaError_t find(const char* name, void** function, cudaDriverEntryPointQueryResult* found) {
  *function = nullptr;
  if (std::strcmp(name, "cuTensorMapEncodeIm2col") == 0) {
    *function = reinterpret_cast<void*>(&cuTensorMapEncodeIm2col);
  } else if (std::strcmp(name, "cuTensorMapEncodeTiled") == 0) {
    *function = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  }
  *found = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

#if CUDART_VERSION >= 12050
// As of CUDA 12.0, whose signatures the functions above have.
extern "C" cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned int version, unsigned long long,
    cudaDriverEntryPointQueryResult* found) {
  return version == 12000 ? find(name, function, found) : cudaErrorInvalidValue;
}
#else
extern "C" cudaError_t CUDARTAPI cudaGetDriverEntryPoint(const char* name, void** function,
                                                         unsigned long long,
                                                         cudaDriverEntryPointQueryResult* found) {
  return find(name, function, found);
}
#endif

EncodeArguments encoded_by_us(const daq_mm::cuda::WalkMapping& mapping) {
  last_walk = {};
  daq_mm::cuda::make_tensor_map(mapping);
  return last_walk;
}

EncodeArguments encoded_by_us(const daq_mm::cuda::MatrixMapping& mapping) {
  last_matrix = {};
  daq_mm::cuda::make_tensor_map(mapping);
  return last_matrix;
}
