// Plain C++ kernels of depthwise.h (words layout), for the ops forward and grad_input.

#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/depthwise.h"

namespace daq_mm::cpu {
namespace {

template <typename T>
void run_block(const BlockTask& task) {
  for (int64_t p = 0; p < task.pixels; ++p) {
    int32_t sums[kDepthwiseLanes] = {};
    for (int64_t t = 0; t < task.taps; ++t) {
      const auto* row = reinterpret_cast<const int16_t*>(task.rows[t * task.row_stride + p] +
                                                         task.channel_offset);
      const auto* w = reinterpret_cast<const int16_t*>(task.panel) + t * kDepthwiseLanes;
      for (int64_t lane = 0; lane < task.lanes; ++lane) sums[lane] += row[lane] * w[lane];
    }
    T* out = reinterpret_cast<T*>(task.out + task.out_at[p]);
    for (int64_t lane = 0; lane < task.lanes; ++lane) {
      if constexpr (std::is_same_v<T, int32_t>) {
        out[lane] = sums[lane];
      } else {
        float y = static_cast<float>(sums[lane]) * task.finish.scale[lane];
        if (task.finish.bias != nullptr) y += task.finish.bias[lane];
        out[lane] = static_cast<T>(y);
      }
    }
  }
}

}  // namespace

BlockKernel depthwise_kernel_scalar(OutKind out) {
  switch (out) {
    case OutKind::kFloat:
      return run_block<float>;
    case OutKind::kHalf:
      return run_block<c10::Half>;
    case OutKind::kInt32:
      return run_block<int32_t>;
    default:
      return run_block<c10::BFloat16>;
  }
}

}  // namespace daq_mm::cpu
