// What sweeps for a gradient's moments and tails share, whether the gradient is in memory
// (thresholds.cu) or computed on the way (glue_thresholds.cu): when they are due, what they add up,
// the limits above which values are tails; and the launches that follow a sweep.
#pragma once

#include <cmath>

#include "cuda/channel_columns.h"
#include "cuda/launches.h"
#include "cuda/rounding_laws.h"

namespace daq_mm::cuda {

// Blocks of Columns::kThreads threads.
constexpr int kSweepWarps = Columns::kThreads / kWarp;
constexpr int64_t kMostMomentParts = 256;  // bounds the memory of moments

enum class Measure { kNever, kAlways, kAtInterval };

// Whether moments and tails are due.
struct Due {
  Measure measure = Measure::kNever;
  Global<int64_t> iteration;
  int64_t interval = 1;

  DAQ_DEVICE bool now() const {
    if (measure == Measure::kAtInterval) return iteration.load(0) % interval == 0;
    return measure == Measure::kAlways;
  }
};

// Partial sums (channels, parts) and then sums of squares, as the sweeps write them.
struct Partials {
  Global<double> values;
  int64_t channels;
  int64_t parts;

  DAQ_DEVICE void store(int64_t channel, int64_t part, double sum, double squares) const {
    values.store(channel * parts + part, sum);
    values.store((channels + channel) * parts + part, squares);
  }
};

// Sums and sums of squares of this thread's column, added up over the block.
template <int width>
DAQ_DEVICE void store_moments(const ColumnWalk& walk, const double (&sum)[width],
                              const double (&squares)[width], const Partials& partials) {
  const Shared<double> scratch(0, Columns::kThreads * width);
  const int64_t first = block_y() * walk.across * width;
#pragma unroll
  for (int moment = 0; moment < 2; ++moment) {
    barrier();
    reduce_columns<width>(walk, scratch, moment == 0 ? sum : squares, sum_of<double>,
                          [&](int i, double value) {
                            if (first + i >= walk.channels) return;
                            partials.values.store((moment * walk.channels + first + i) *
                                                      partials.parts + block_x(), value);
                          });
  }
}

// The largest float that is not above a standard deviation: |v| > deviation is |v| > that.
DAQ_DEVICE float deviation_below(double sum, double squares, double count) {
  const double mean = sum / count;
  const double variance = squares / count - mean * mean;
  const double deviation = sqrt(variance > 0 ? variance : 0.0);
  const float near = static_cast<float>(deviation);
  return static_cast<double>(near) > deviation ? float_of_bits(bits_of(near) - 1) : near;
}

constexpr int64_t kLimitsBytes = 2 * kSweepWarps * sizeof(double);  // of shared memory

// The limits above which values count as tails.
struct Limits {
  Global<const double> moments;  // (2, channels)
  int64_t channels;
  double of_channel;  // values a channel

  DAQ_DEVICE float own(int64_t c) const {
    return deviation_below(moments.load(c), moments.load(channels + c), of_channel);
  }
  // Of the whole tensor; all threads of a block take part, and all get it.
  DAQ_DEVICE float all() const {
    const Shared<double> of_warp(0, 2 * kSweepWarps);
    double total[2];
    for (int moment = 0; moment < 2; ++moment) {
      double sum = 0;
      for (int64_t c = thread_index(); c < channels; c += Columns::kThreads) {
        sum += moments.load(moment * channels + c);
      }
      sum = reduce_warp(sum, sum_of<double>);
      if (lane_index() == 0) of_warp.store(moment * kSweepWarps + warp_index(), sum);
    }
    barrier();
    for (int moment = 0; moment < 2; ++moment) {
      total[moment] = 0;
      for (int w = 0; w < kSweepWarps; ++w) total[moment] += of_warp.load(moment * kSweepWarps + w);
    }
    barrier();
    return deviation_below(total[0], total[1], of_channel * static_cast<double>(channels));
  }
};

DAQ_DEVICE void add_for_tensor(uint32_t above, const Global<Counter>& counts, int64_t channels) {
  above = reduce_warp(above, sum_of<uint32_t>);
  if (lane_index() == 0 && above > 0) atomic_add(counts, channels, Counter{above});
}

// Tails of this thread's column and of the tensor, added up over the block.
template <int width>
DAQ_DEVICE void add_tails(const ColumnWalk& walk, const uint32_t (&above)[width],
                          uint32_t above_all, const Global<Counter>& counts) {
  add_for_tensor(above_all, counts, walk.channels);
  const int64_t first = block_y() * walk.across * width;
  reduce_columns<width>(
      walk, Shared<uint32_t>(kLimitsBytes, Columns::kThreads * width), above, sum_of<uint32_t>,
      [&](int i, uint32_t value) {
        if (first + i >= walk.channels || value == 0) return;
        atomic_add(counts, first + i, Counter{value});
      });
}

// ---- thresholds.cu ----

// moments (2, channels) of the partials of `parts` parts, where due.
void combine_moments(const Due& due, const double* partials, int64_t channels, int64_t parts,
                     double* moments, Stream stream);

// The state moved on by maxima (channels + 1, the tensor's last) and, where due, by the counts of
// tails (channels + 1) among `of_channel` values a channel.
void move_thresholds_by(const Due& due, const float* maxima, const Counter* counts,
                        int64_t channels, double of_channel, const ThresholdRules& rules,
                        const ThresholdState& state, float* used, Stream stream);

}  // namespace daq_mm::cuda
