// What the op registrations need of the device: its guard, its stream, where ops are registered.
// With DAQ_MM_EMULATED the same registrations compile for CPU tensors under the namespace
// daq_mm_emulated, which tests/emulated.py builds.
#pragma once

#include <c10/core/Device.h>

#ifdef DAQ_MM_EMULATED
#define DAQ_MM_CUDA_LIBRARY daq_mm_emulated
#define DAQ_MM_CUDA_KEY CPU
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define DAQ_MM_CUDA_LIBRARY daq_mm
#define DAQ_MM_CUDA_KEY CUDA
#endif

#include "cuda/primitives/types.h"

// Use: DAQ_MM_CUDA_IMPL(m) { m.impl("forward", &forward); }
#define DAQ_MM_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(DAQ_MM_CUDA_LIBRARY, DAQ_MM_CUDA_KEY, m)

namespace daq_mm::cuda {

#ifdef DAQ_MM_EMULATED
constexpr c10::DeviceType kDeviceType = c10::DeviceType::CPU;
struct DeviceGuard {
  explicit DeviceGuard(c10::Device /*device*/) {}
};
inline Stream current_stream() { return nullptr; }
#else
constexpr c10::DeviceType kDeviceType = c10::DeviceType::CUDA;
// Kernels launch on the current device; an argument may live on another one.
using DeviceGuard = c10::cuda::CUDAGuard;
inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream(); }
#endif

}  // namespace daq_mm::cuda
