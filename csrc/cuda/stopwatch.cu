// primitives/stopwatch.h on the hardware; the emulator has its own.

#include "cuda/primitives/stopwatch.h"

#ifndef DAQ_MM_EMULATED

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <cuda_runtime_api.h>

#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {
namespace {

DAQ_DEVICE uint64_t nanoseconds_now() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

DAQ_KERNEL(kWarp, 1)
void hold_kernel(uint64_t nanoseconds) {
  const uint64_t begin = nanoseconds_now();
  while (nanoseconds_now() - begin < nanoseconds) {}
}

class Event {
 public:
  Event() { C10_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { C10_CUDA_CHECK_WARN(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream) { C10_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  double seconds_since(const Event& begin) {
    float milliseconds = 0.0f;
    C10_CUDA_CHECK(cudaEventSynchronize(event_));
    C10_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

double device_seconds(Stream stream, double head_start, const std::function<void()>& work) {
  // Another thread may capture another stream meanwhile, which waiting here does not disturb.
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  Event begin, end;
  launch(hold_kernel, Grid{}, kWarp, 0, stream, static_cast<uint64_t>(head_start * 1e9));
  begin.record(stream);
  work();
  end.record(stream);
  return end.seconds_since(begin);
}

bool is_capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaErrorStreamCaptureImplicit) {  // the default stream, while another is captured
    cudaGetLastError();
    return true;
  }
  C10_CUDA_CHECK(error);
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace daq_mm::cuda

#endif
