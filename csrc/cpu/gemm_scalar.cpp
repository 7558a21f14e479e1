// Plain C++ kernels of gemm_tiles.h (words layout), called by gemm_driver.cpp for the ops forward
// and grad_input on processors without AVX2.

#include <algorithm>
#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/gemm_tiles.h"

namespace daq_mm::cpu {
namespace {

template <typename T>
void run_block(const BlockTask& task) {
  for (int64_t p = 0; p < task.pixels; ++p) {
    // Unsigned: sums are modulo 2^32.
    uint32_t sums[kVector] = {};
    for (int64_t t = 0; t < task.taps; ++t) {
      const auto* row = reinterpret_cast<const int16_t*>(task.rows[t * task.row_stride + p] +
                                                         task.channel_offset);
      const auto* panel = reinterpret_cast<const int16_t*>(task.panel + t * task.tap_stride);
      for (int64_t k = 0; k < task.steps; ++k) {
        const int32_t a = row[2 * k];
        const int32_t b = row[2 * k + 1];
        for (int64_t lane = 0; lane < kVector; ++lane) {
          const int16_t* w = panel + (k * kVector + lane) * 2;
          sums[lane] += static_cast<uint32_t>(a * w[0] + b * w[1]);
        }
      }
    }
    T* out = reinterpret_cast<T*>(task.out + task.out_at[p]);
    for (int64_t lane = 0; lane < std::min(task.lanes, kVector); ++lane) {
      const auto exact =
          static_cast<int32_t>(sums[lane] - static_cast<uint32_t>(task.finish.offset[lane]));
      if constexpr (std::is_same_v<T, int32_t>) {
        out[lane] = exact;
      } else {
        float y = static_cast<float>(exact) * task.finish.scale[lane];
        if (task.finish.bias != nullptr) y += task.finish.bias[lane];
        out[lane] = static_cast<T>(y);
      }
    }
  }
}

}  // namespace

BlockKernel block_kernel_scalar(OutKind out) {
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
