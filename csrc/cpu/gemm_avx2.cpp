// AVX2 kernels of gemm_tiles.h (words layout), called by gemm_driver.cpp for the ops forward and
// grad_input. A tile of 6 pixels x 16 lanes stays in 12 of the 16 registers; vpmaddwd multiplies
// pairs of int16 exactly.

#include "cpu/gemm_tiles.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#include "cpu/finish_avx2.h"

namespace daq_mm::cpu {
namespace {

constexpr int kPixels = 6;

template <OutKind kOut>
DAQ_MM_INLINE void store_row(__m256i low, __m256i high, const BlockTask& task, int64_t p) {
  uint8_t* out = task.out + task.out_at[p];
  if (task.lanes == kVector) {
    store_eight<kOut>(low, task.finish, 0, out);
    store_eight<kOut>(high, task.finish, 8, out);
    return;
  }
  uint8_t row[kVector * kElementSize<kOut>];
  store_eight<kOut>(low, task.finish, 0, row);
  store_eight<kOut>(high, task.finish, 8, row);
  __builtin_memcpy(out, row, task.lanes * kElementSize<kOut>);
}

template <OutKind kOut>
void run_block(const BlockTask& task) {
  for (int64_t p = 0; p < task.pixels; p += kPixels) {
    __m256i low[kPixels];
    __m256i high[kPixels];
#pragma GCC unroll 6
    for (int i = 0; i < kPixels; ++i) low[i] = high[i] = _mm256_setzero_si256();
    for (int64_t t = 0; t < task.taps; ++t) {
      const uint8_t* const* rows = task.rows + t * task.row_stride + p;
      const uint8_t* row[kPixels];
#pragma GCC unroll 6
      for (int i = 0; i < kPixels; ++i) row[i] = rows[i] + task.channel_offset;
      const auto* panel = reinterpret_cast<const __m256i*>(task.panel + t * task.tap_stride);
      for (int64_t k = 0; k < task.steps; ++k) {
        const __m256i w0 = _mm256_load_si256(panel + 2 * k);
        const __m256i w1 = _mm256_load_si256(panel + 2 * k + 1);
#pragma GCC unroll 6
        for (int i = 0; i < kPixels; ++i) {
          const __m256i pair =
              _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(row[i] + 4 * k));
          low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pair, w0));
          high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pair, w1));
        }
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPixels; ++i) {
      if (p + i < task.pixels) store_row<kOut>(low[i], high[i], task, p + i);
    }
  }
}

}  // namespace

BlockKernel block_kernel_avx2(OutKind out) {
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
