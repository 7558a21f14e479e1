// statistics[s][c] = sum, sum of squares, minimum, maximum over positions of result[position][c];
// and the two sums of grad_input_reduce, of which the tiles leave the first stage too.
// Blocks of 32 channels x 8 rows; float32 within 128 rows (relative error of a sum of magnitudes
// below 1e-6), float64 beyond.

#include "cuda/conv_statistics.h"

namespace daq_mm::cuda {
namespace {

constexpr int kChannels = kWarp;
constexpr int kRows = 8;
constexpr int kThreads = kChannels * kRows;
// in [row][values][channels] -> out [chunk][values][channels]; block y is the chunk. The first two
// values are sums, where there are four, the others a minimum and a maximum.
template <typename in_t, int values>
DAQ_KERNEL(kThreads, 2)
void reduce_kernel(Global<const in_t> in, int64_t rows, int64_t channels, Global<double> out) {
  constexpr bool kExtremes = values == 4;
  const Shared<double> shared(0, values * kThreads);
  const int64_t channel = block_x() * kChannels + lane_index();
  const int64_t per_chunk = ceil_div(rows, grid_y());
  const int64_t begin = block_y() * per_chunk;
  const int64_t end = begin + per_chunk < rows ? begin + per_chunk : rows;
  double sum = 0.0, second = 0.0;
  Statistics extremes;
  if (channel < channels) {
    for (int64_t row = begin + warp_index(); row < end; row += kRows) {
      const int64_t at = row * values * channels + channel;
      sum += in.load(at);
      second += in.load(at + channels);
      if constexpr (kExtremes) {
        extremes.low = lower_of(extremes.low, static_cast<float>(in.load(at + 2 * channels)));
        extremes.high =
            higher_of(extremes.high, static_cast<float>(in.load(at + 3 * channels)));
      }
    }
  }
  const int mine = thread_index();
  shared.store(mine, sum);
  shared.store(kThreads + mine, second);
  if constexpr (kExtremes) {
    shared.store(2 * kThreads + mine, extremes.low);
    shared.store(3 * kThreads + mine, extremes.high);
  }
  barrier();
  if (warp_index() != 0 || channel >= channels) return;
  for (int row = 1; row < kRows; ++row) {
    const int at = row * kChannels + lane_index();
    sum += shared.load(at);
    second += shared.load(kThreads + at);
    if constexpr (kExtremes) {
      extremes.low = lower_of(extremes.low, static_cast<float>(shared.load(2 * kThreads + at)));
      extremes.high =
          higher_of(extremes.high, static_cast<float>(shared.load(3 * kThreads + at)));
    }
  }
  const int64_t to = block_y() * values * channels + channel;
  out.store(to, sum);
  out.store(to + channels, second);
  if constexpr (kExtremes) {
    out.store(to + 2 * channels, extremes.low);
    out.store(to + 3 * channels, extremes.high);
  }
}

template <int values>
void reduce(void* scratch, int64_t rows, int64_t channels, double* result, Stream stream) {
  auto* const coarse = reinterpret_cast<double*>(static_cast<uint8_t*>(scratch) +
                                                 partial_statistics_bytes(rows, channels, values));
  const int64_t coarse_rows = statistics_chunks(rows);
  const int64_t across = ceil_div(channels, int64_t{kChannels});
  constexpr int64_t kShared = values * kThreads * sizeof(double);
  launch(reduce_kernel<float, values>, Grid{across, coarse_rows}, kThreads, kShared, stream,
         Global<const float>(static_cast<const float*>(scratch), rows * values * channels), rows,
         channels, Global<double>(coarse, coarse_rows * values * channels));
  launch(reduce_kernel<double, values>, Grid{across}, kThreads, kShared, stream,
         Global<const double>(coarse, coarse_rows * values * channels), coarse_rows, channels,
         Global<double>(result, values * channels));
}

// Each block 128 rows of 32 channels.
DAQ_KERNEL(kThreads, 2)
void pass_kernel(Results results, int64_t positions, int64_t channels, Global<float> partial) {
  const Shared<float> shared(0, 4 * kThreads);
  const int64_t channel = block_y() * kChannels + lane_index();
  const int64_t begin = block_x() * kStatisticsRows;
  const int64_t end =
      begin + kStatisticsRows < positions ? begin + kStatisticsRows : positions;
  Statistics mine;
  if (channel < channels) {
    for (int64_t row = begin + warp_index(); row < end; row += kRows) {
      const int64_t at = row * channels + channel;
      const uint32_t bits = results.wide() ? results.bytes.load_as<uint32_t>(at * 4)
                                           : results.bytes.load_as<uint16_t>(at * 2);
      mine.include(result_value(bits, results.type));
    }
  }
  mine.store(shared, thread_index(), kThreads);
  barrier();
  if (warp_index() != 0 || channel >= channels) return;
  for (int row = 1; row < kRows; ++row) {
    mine.include(Statistics::load(shared, row * kChannels + lane_index(), kThreads));
  }
  mine.store(partial, block_x() * 4 * channels + channel, channels);
}

}  // namespace

void reduce_statistics(void* scratch, int64_t rows, int64_t channels, double* statistics,
                       Stream stream) {
  reduce<4>(scratch, rows, channels, statistics, stream);
}

void reduce_two_sums(void* scratch, int64_t rows, int64_t channels, double* sums, Stream stream) {
  reduce<2>(scratch, rows, channels, sums, stream);
}

void pass_statistics(const Results& results, int64_t positions, int64_t channels, void* scratch,
                     double* statistics, Stream stream) {
  const int64_t rows = ceil_div(positions, kStatisticsRows);
  launch(pass_kernel, Grid{rows, ceil_div(channels, int64_t{kChannels})}, kThreads,
         4 * kThreads * sizeof(float), stream, results, positions, channels,
         Global<float>(static_cast<float*>(scratch), rows * 4 * channels));
  reduce_statistics(scratch, rows, channels, statistics, stream);
}

}  // namespace daq_mm::cuda
