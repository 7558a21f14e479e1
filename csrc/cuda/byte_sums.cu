// Sums of the columns of a matrix of bytes: byte_sums of dropped_mean.h. Integers throughout, so
// that blocks may add theirs by atomics in any order.

#include "cuda/byte_columns.h"
#include "cuda/dropped_mean.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;
constexpr int64_t kMostParts = 1024;

template <typename T, int width>
DAQ_KERNEL(kThreads, 4)
void byte_sums_kernel(Global<const T> q, ColumnWalk walk, Global<int32_t> sums) {
  int32_t total[width] = {};
  const int64_t channel = walk.channel<width>();
  if (channel < walk.channels) {
    walk.for_rows([&](int64_t row) {
      add_bytes<T, width>(q, row * walk.channels + channel, total);
    });
  }
  const int64_t first = block_y() * walk.across * width;
  reduce_columns<width>(walk, Shared<int32_t>(0, kThreads * width), total, sum_of<int32_t>,
                        [&](int i, int32_t value) {
                          if (first + i < walk.channels) atomic_add(sums, first + i, value);
                        });
}

template <typename T>
void launch_byte_sums(const T* q, int64_t rows, int64_t channels, int32_t* sums, Stream stream) {
  clear(sums, channels * sizeof(int32_t), stream);
  if (rows * channels == 0) return;
  const bool vectors = byte_vectors(q, channels);
  const Columns columns(rows, channels, vectors, kMostParts);
  const auto kernel = vectors ? byte_sums_kernel<T, kVector> : byte_sums_kernel<T, 1>;
  launch(kernel, columns.grid, kThreads, kThreads * columns.width * sizeof(int32_t), stream,
         Global<const T>(q, rows * channels), ColumnWalk(columns),
         Global<int32_t>(sums, channels));
}

}  // namespace

void byte_sums(const int8_t* q, int64_t rows, int64_t channels, int32_t* sums, Stream stream) {
  launch_byte_sums(q, rows, channels, sums, stream);
}

void byte_sums(const uint8_t* q, int64_t rows, int64_t channels, int32_t* sums, Stream stream) {
  launch_byte_sums(q, rows, channels, sums, stream);
}

}  // namespace daq_mm::cuda
