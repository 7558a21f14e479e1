// AVX2 kernels of depthwise.h (words layout), for the ops forward and grad_input: eight channels at
// a time, int16 widened to int32.

#include "cpu/depthwise.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#include "cpu/finish_avx2.h"

namespace daq_mm::cpu {
namespace {

DAQ_MM_INLINE __m256i widen(const int16_t* at) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

template <OutKind kOut>
void run_block(const BlockTask& task) {
  const auto* panel = reinterpret_cast<const int16_t*>(task.panel);
  for (int64_t p = 0; p < task.pixels; ++p) {
    uint8_t* out = task.out + task.out_at[p];
    for (int64_t lane = 0; lane < task.lanes; lane += 8) {
      // Rows have room for whole vectors behind their last channel.
      __m256i sums = _mm256_setzero_si256();
      for (int64_t t = 0; t < task.taps; ++t) {
        const auto* row = reinterpret_cast<const int16_t*>(task.rows[t * task.row_stride + p] +
                                                           task.channel_offset);
        const __m256i product = _mm256_mullo_epi32(
            widen(row + lane), widen(panel + t * kDepthwiseLanes + lane));
        sums = _mm256_add_epi32(sums, product);
      }
      if (task.lanes - lane >= 8) {
        store_eight<kOut>(sums, task.finish, lane, out);
      } else {
        uint8_t some[kDepthwiseLanes * kElementSize<kOut>];
        store_eight<kOut>(sums, task.finish, lane, some);
        __builtin_memcpy(out + lane * kElementSize<kOut>, some + lane * kElementSize<kOut>,
                         (task.lanes - lane) * kElementSize<kOut>);
      }
    }
  }
}

}  // namespace

BlockKernel depthwise_kernel_avx2(OutKind out) {
  switch (out) {
    case OutKind::kFloat:
      return run_block<OutKind::kFloat>;
    case OutKind::kHalf:
      return run_block<OutKind::kHalf>;
    case OutKind::kInt32:
      return run_block<OutKind::kInt32>;
    default:
      return run_block<OutKind::kBFloat16>;
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
