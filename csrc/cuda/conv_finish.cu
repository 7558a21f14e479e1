// result[row][column] = float(sum over splits of partial - zero point * sum of sums) * steps + bias,
// the integers exact in int64.

#include "cuda/conv_finish.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

// With fewer splits, threads add up all of a result's by themselves.
constexpr int kWays = 8;
constexpr int64_t kSplitsToShare = 32;

// `ways` threads share the splits of a result: few results of many splits, which depthwise
// grad-weight has, would leave the device idle and each thread waiting for memory.
template <int ways>
DAQ_KERNEL(kThreads, 4)
void finish_kernel(FinishArguments a) {
  constexpr int kResults = kThreads / ways;  // of a block at a time
  const Shared<int64_t> shared(0, kThreads);
  const int64_t count = a.rows * a.columns;
  const bool scaled = !a.qparams.is_null();
  const float first_step = scaled ? source_step(a.qparams) : 1.0f;
  const int64_t zero_point = scaled ? source_zero_point(a.qparams) : 0;
  const int64_t owners = a.by_row ? a.rows : a.columns;
  const int way = thread_index() / kResults;
  for (int64_t first = block_x() * kResults; first < count; first += grid_x() * kResults) {
    const int64_t i = first + thread_index() % kResults;
    int64_t sum = 0;
    if (i < count) {
#pragma unroll 8
      for (int64_t split = way; split < a.splits; split += ways) {
        sum += a.partial.load(split * count + i);
      }
    }
    if constexpr (ways > 1) {
      shared.store(thread_index(), sum);
      barrier();
      if (way == 0) {
        for (int w = 1; w < ways; ++w) sum += shared.load(w * kResults + thread_index());
      }
      barrier();
    }
    if (way > 0 || i >= count) continue;
    const int64_t row = i / a.columns, column = i % a.columns;
    const int64_t owner = a.by_row ? row : column;
    if (zero_point != 0 && !a.sums.is_null()) {
      int64_t offset = 0;
      for (int64_t s = 0; s < a.sum_splits; ++s) offset += a.sums.load(s * owners + owner);
      sum -= zero_point * offset;
    }
    const float step = a.step.load(a.many_steps ? owner : 0);
    const float scale = scaled ? multiply(first_step, step) : step;
    const bool has_bias = !a.bias.is_null();
    const float bias = has_bias ? a.bias.load(owner) : 0.0f;
    int64_t to = i;
    if (a.taps > 0) {
      const int64_t channels = a.columns / a.taps;
      to = row * a.columns + column % channels * a.taps + column / channels;
    }
    a.results.store(to, result_bits(sum, scale, has_bias, bias, a.results.type));
  }
}

template <int ways>
void launch_finish(const FinishArguments& a, Stream stream) {
  const int64_t blocks = ceil_div(a.rows * a.columns, int64_t{kThreads / ways});
  const int64_t shared = ways > 1 ? kThreads * sizeof(int64_t) : 0;
  launch(finish_kernel<ways>, Grid{blocks < kMostBlocks ? blocks : kMostBlocks}, kThreads, shared,
         stream, a);
}

}  // namespace

void finish_sums(const FinishArguments& a, Stream stream) {
  if (a.splits < kSplitsToShare) {
    launch_finish<1>(a, stream);
  } else {
    launch_finish<kWays>(a, stream);
  }
}

}  // namespace daq_mm::cuda
