// result[row][column] = float(sum over splits of partial - zero point * sum of sums) * steps + bias,
// the integers exact in int64.

#include "cuda/conv_finish.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

DAQ_KERNEL(kThreads, 4)
void finish_kernel(FinishArguments a) {
  const int64_t count = a.rows * a.columns;
  const bool scaled = !a.qparams.is_null();
  const float first_step = scaled ? source_step(a.qparams) : 1.0f;
  const int64_t zero_point = scaled ? source_zero_point(a.qparams) : 0;
  const int64_t owners = a.by_row ? a.rows : a.columns;
  for (int64_t i = block_x() * kThreads + thread_index(); i < count; i += grid_x() * kThreads) {
    const int64_t row = i / a.columns, column = i % a.columns;
    const int64_t owner = a.by_row ? row : column;
    int64_t sum = 0;
    for (int64_t split = 0; split < a.splits; ++split) sum += a.partial.load(split * count + i);
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

}  // namespace

void finish_sums(const FinishArguments& a, Stream stream) {
  const int64_t blocks = ceil_div(a.rows * a.columns, int64_t{kThreads});
  launch(finish_kernel, Grid{blocks < kMostBlocks ? blocks : kMostBlocks}, kThreads, 0, stream, a);
}

}  // namespace daq_mm::cuda
