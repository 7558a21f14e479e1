// update_thresholds of a gradient that is never written: norm_backward_thresholds of glue.h.
//
// One pass finds the maxima. Where the discriminator is due, which stands in device memory, a second
// one adds up moments and a third one counts tails, each computing dy again; else they return at
// once. So a CUDA graph, in which the host cannot choose, costs three empty launches and a fill more.

#include <algorithm>

#include "cuda/glue.h"
#include "cuda/glue_gradient.h"
#include "cuda/threshold_sweep.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;

// One block a processor: sums in double leave too few registers for two, and loads in flight.
template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 1)
void moments_kernel(Backward<type, vectors> backward, ColumnWalk walk, Due due,
                    Partials partials) {
  if (!due.now()) return;
  const ColumnPlace<vectors> place(walk);
  constexpr int kAhead = !vectors ? 2 : type == FloatType::float32 ? 3 : 5;
  double sum[kVector] = {}, squares[kVector] = {};
  if (place.count > 0) {
    backward.template for_rows<kAhead>(walk, place, [] {}, [&](int64_t, const auto& v) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const double wide = v[k];
        sum[k] += wide;
        squares[k] += wide * wide;
      }
    });
  }
  store_moments<kVector>(walk, sum, squares, partials);
}

template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void tails_kernel(Backward<type, vectors> backward, ColumnWalk walk, Due due, Limits limits,
                  Global<Counter> counts) {
  if (!due.now()) return;
  const float all = limits.all();
  const ColumnPlace<vectors> place(walk);
  uint32_t above[kVector] = {}, above_all = 0;
  if (place.count > 0) {
    float own[kVector];
    const auto prepare = [&] {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        own[k] = place.has(k) ? limits.own(place.channel + k) : INFINITY;
      }
    };
    backward.for_rows(walk, place, prepare, [&](int64_t, const float (&v)[kVector]) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float magnitude = fabsf(v[k]);
        above[k] += magnitude > own[k] ? 1 : 0;
        above_all += place.has(k) && magnitude > all ? 1 : 0;
      }
    });
  }
  add_tails<kVector>(walk, above, above_all, counts);
}

// The device memory that it takes: counts, moments, their partials, maxima.
struct Memory {
  int64_t channels;
  Columns columns;

  explicit Memory(const GlueSize& size)
      : channels(size.channels), columns(size.rows, size.channels, true, kMostMomentParts) {}

  int64_t parts() const { return columns.parts; }
  int64_t counts_bytes() const { return (channels + 1) * sizeof(Counter); }
  int64_t doubles() const { return 2 * channels * (1 + parts()); }
  int64_t bytes() const {
    return counts_bytes() + doubles() * sizeof(double) + (channels + 1) * sizeof(float);
  }
  Counter* counts(void* at) const { return static_cast<Counter*>(at); }
  double* moments(void* at) const {
    return reinterpret_cast<double*>(counts(at) + channels + 1);
  }
  double* partials(void* at) const { return moments(at) + 2 * channels; }
  float* maxima(void* at) const { return reinterpret_cast<float*>(moments(at) + doubles()); }
};

}  // namespace

int64_t norm_backward_thresholds_workspace(const GlueSize& size) { return Memory(size).bytes(); }

void norm_backward_thresholds(const NormBackward& a, const GlueSize& size,
                              const ThresholdRules& rules, int64_t interval,
                              const ThresholdState& state, void* workspace, float* used,
                              Stream stream) {
  const Memory memory(size);
  const int64_t channels = size.channels;
  const Due due{rules.mcs ? Measure::kAtInterval : Measure::kNever,
                Global<int64_t>(state.iteration, 1), interval};
  Counter* const counts = memory.counts(workspace);
  float* const maxima = memory.maxima(workspace);
  norm_backward_maxima(a, size, maxima, stream);
  if (rules.mcs) {
    clear(counts, memory.counts_bytes(), stream);
    double* const partials = memory.partials(workspace);
    double* const moments = memory.moments(workspace);
    const ColumnWalk walk(memory.columns);
    const Limits limits{Global<const double>(moments, 2 * channels), channels,
                        static_cast<double>(size.rows)};
    with_column_type(size, all_aligned(size, a.g, a.y), [&](auto type, auto by_vectors) {
      const Backward<type(), by_vectors()> backward(a, size);
      launch(moments_kernel<type(), by_vectors()>, memory.columns.grid, kThreads,
             kThreads * kVector * sizeof(double), stream, backward, walk, due,
             Partials{Global<double>(partials, 2 * channels * memory.parts()), channels,
                      memory.parts()});
      combine_moments(due, partials, channels, memory.parts(), moments, stream);
      launch(tails_kernel<type(), by_vectors()>, memory.columns.grid, kThreads,
             kLimitsBytes + kThreads * kVector * sizeof(uint32_t), stream, backward, walk, due,
             limits, Global<Counter>(counts, channels + 1));
    });
  }
  move_thresholds_by(due, maxima, counts, channels, static_cast<double>(size.rows), rules, state,
                     used, stream);
}

}  // namespace daq_mm::cuda
