// The gradient's maxima and tails, and a layer's threshold state moved on: update_thresholds,
// move_thresholds and channel_sums of launches.h.
//
//   maximum[c] = max |g[:, c]|, and of the whole tensor
//   tail[c] = share of |g[:, c]| above its standard deviation, every `interval`-th gradient
//   threshold[c] = tail[c] > gaussian_above ? maximum[c] : decay * threshold[c] + gain * maximum[c]
//                  and, with `cap`, at most maximum[c]
//
// Whether tails are due stands in device memory, so the host launches everything and what is not
// due returns at once. One sweep gives the maxima, and where due sums and sums of squares (double,
// each part of the tensor for itself, parts added in order); a second one counts the tails. Maxima
// and counts are reduced by atomics on integers, which don't depend on their order.

#include <algorithm>
#include <cmath>

#include "cuda/channel_columns.h"
#include "cuda/float_source.h"
#include "cuda/launches.h"
#include "cuda/rounding_laws.h"
#include "cuda/threshold_sweep.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;
constexpr int kWarps = kSweepWarps;
constexpr int64_t kMostParts = 1024;  // of a sweep for maxima
constexpr int64_t kPiece = 4096;      // values of a channels-first row that a warp reads

template <FloatType type>
constexpr int kRowsAhead = type == FloatType::float32 ? 2 : 3;  // whose loads a thread has in flight

// The sweep's accumulators of one channel.
struct Moments {
  uint32_t most = 0;
  double sum = 0;
  double squares = 0;

  DAQ_DEVICE void see(float v) { most = larger(most, bits_of(v) & ~kSignBit); }
  DAQ_DEVICE void measure(float v) {
    see(v);
    const double wide = v;
    sum += wide;
    squares += wide * wide;
  }
};

// Rows of channels-first memory, cut into pieces for warps; part p of a channel is its p-th piece.
struct Pieces {
  int64_t n;
  int64_t channels;
  int64_t spatial;
  int64_t of_row;
  bool vectors;

  explicit Pieces(const FloatImage& g)
      : n(g.n),
        channels(g.c),
        spatial(g.spatial),
        of_row((g.spatial + kPiece - 1) / kPiece),
        vectors(reinterpret_cast<uintptr_t>(g.values.data) % 16 == 0 &&
                g.spatial % kVector == 0) {}

  int64_t parts() const { return n * of_row; }
  Grid grid() const { return {(n * channels * of_row + kWarps - 1) / kWarps}; }

  DAQ_DEVICE int64_t item() const { return block_x() * kWarps + warp_index(); }
  DAQ_DEVICE bool is_over() const { return item() >= n * channels * of_row; }
  DAQ_DEVICE int64_t channel() const { return item() / of_row % channels; }
  DAQ_DEVICE int64_t part() const { return item() / of_row / channels * of_row + item() % of_row; }

  // Calls f(v) for this lane's values of the warp's piece.
  template <FloatType type, typename F>
  DAQ_DEVICE void for_values(const FloatSource<type>& g, const F& f) const {
    const int64_t start = item() % of_row * kPiece, base = item() / of_row * spatial;
    const int64_t end = start + kPiece < spatial ? start + kPiece : spatial;
    if (vectors) {
      for (int64_t i = start + lane_index() * kVector; i < end; i += kWarp * kVector) {
        float v[kVector];
        load_values<type, kVector>(g, base + i, v);
        for (const float value : v) f(value);
      }
    } else {
      for (int64_t i = start + lane_index(); i < end; i += kWarp) {
        f(from_word<type>(g.load(base + i)));
      }
    }
  }
};

template <FloatType type, int width>
DAQ_KERNEL(kThreads, 3)
void sweep_columns(FloatSource<type> g, ColumnWalk walk, Due due, Partials partials,
                   Global<uint32_t> maxima) {
  const bool measure = due.now();
  // Fewer blocks where each leaves sums behind.
  walk.parts = measure ? partials.parts : grid_x();
  if (block_x() >= walk.parts) return;
  Moments of[width];
  const int64_t channel = walk.channel<width>();
  if (channel < walk.channels) {
    using Words = FloatWords<type, width>;
    const auto load = [&](bool wanted, int64_t, int64_t i, Words& words) {
      words.load_if(wanted, g, i);
    };
    auto rows = rows_ahead<kRowsAhead<type>, Words>(walk, channel, load);
    if (measure) {
      rows.for_each([&](int64_t, int64_t, const Words& words) {
#pragma unroll
        for (int k = 0; k < width; ++k) of[k].measure(words.value(k));
      });
    } else {
      rows.for_each([&](int64_t, int64_t, const Words& words) {
#pragma unroll
        for (int k = 0; k < width; ++k) of[k].see(words.value(k));
      });
    }
  }
  uint32_t most[width];
  for (int k = 0; k < width; ++k) most[k] = of[k].most;
  const int64_t first = block_y() * walk.across * width;
  reduce_columns<width>(walk, Shared<uint32_t>(0, kThreads * width), most, larger,
                        [&](int i, uint32_t value) {
                          if (first + i < walk.channels) atomic_max(maxima, first + i, value);
                        });
  if (!measure) return;
  double sum[width], squares[width];
  for (int k = 0; k < width; ++k) sum[k] = of[k].sum, squares[k] = of[k].squares;
  store_moments<width>(walk, sum, squares, partials);
}

template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void sweep_rows(FloatSource<type> g, Pieces pieces, Due due, Partials partials,
                Global<uint32_t> maxima) {
  if (pieces.is_over()) return;
  const bool measure = due.now();
  Moments of;
  pieces.for_values<type>(g, [&](float v) { measure ? of.measure(v) : of.see(v); });
  const uint32_t most = reduce_warp(of.most, larger);
  if (lane_index() == 0) atomic_max(maxima, pieces.channel(), most);
  if (!measure) return;
  const double sum = reduce_warp(of.sum, sum_of<double>);
  const double squares = reduce_warp(of.squares, sum_of<double>);
  if (lane_index() == 0) partials.store(pieces.channel(), pieces.part(), sum, squares);
}

// sums (entries) of partials (entries, parts), a warp each; as floats where those are wanted.
DAQ_KERNEL(kThreads, 4)
void combine_kernel(Due due, Global<const double> partials, int64_t entries, int64_t parts,
                    Global<double> sums, Global<float> floats) {
  const int64_t i = block_x() * kWarps + warp_index();
  if (!due.now() || i >= entries) return;
  double total = 0;
  for (int64_t part = lane_index(); part < parts; part += kWarp) {
    total += partials.load(i * parts + part);
  }
  total = reduce_warp(total, sum_of<double>);
  if (lane_index() != 0) return;
  if (!sums.is_null()) sums.store(i, total);
  if (!floats.is_null()) floats.store(i, static_cast<float>(total));
}

void launch_combine(const Due& due, const double* partials, int64_t entries, int64_t parts,
                    Global<double> sums, Global<float> floats, Stream stream) {
  launch(combine_kernel, Grid{(entries + kWarps - 1) / kWarps}, kThreads, 0, stream, due,
         Global<const double>(partials, entries * parts), entries, parts, sums, floats);
}

template <FloatType type, int width>
DAQ_KERNEL(kThreads, 3)
void tails_columns(FloatSource<type> g, ColumnWalk walk, Due due, Limits limits,
                   Global<Counter> counts) {
  if (!due.now()) return;
  const float all = limits.all();
  const int64_t channel = walk.channel<width>();
  uint32_t above[width] = {}, above_all = 0;
  if (channel < walk.channels) {
    using Words = FloatWords<type, width>;
    const auto load = [&](bool wanted, int64_t, int64_t i, Words& words) {
      words.load_if(wanted, g, i);
    };
    auto rows = rows_ahead<kRowsAhead<type>, Words>(walk, channel, load);
    float own[width];
#pragma unroll
    for (int k = 0; k < width; ++k) own[k] = limits.own(channel + k);
    rows.for_each([&](int64_t, int64_t, const Words& words) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const float magnitude = fabsf(words.value(k));
        above[k] += magnitude > own[k] ? 1 : 0;
        above_all += magnitude > all ? 1 : 0;
      }
    });
  }
  add_tails<width>(walk, above, above_all, counts);
}

template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void tails_rows(FloatSource<type> g, Pieces pieces, Due due, Limits limits,
                Global<Counter> counts) {
  if (!due.now()) return;
  const float all = limits.all();
  if (pieces.is_over()) return;
  const float own = limits.own(pieces.channel());
  uint32_t above = 0, above_all = 0;
  pieces.for_values<type>(g, [&](float v) {
    above += fabsf(v) > own ? 1 : 0;
    above_all += fabsf(v) > all ? 1 : 0;
  });
  add_for_tensor(above_all, counts, pieces.channels);
  add_for_tensor(above, counts, pieces.channel());
}

// One block. maxima: bits of `channels` values; the tensor's is made here, or stands behind them.
DAQ_KERNEL(kThreads, 1)
void move_kernel(Global<const uint32_t> maxima, int64_t channels, bool with_total,
                 ThresholdRules rules, Due due, Global<const Counter> counts, double of_channel,
                 Global<float> threshold, Global<float> tails, Global<int64_t> iteration,
                 Global<float> used) {
  const Shared<uint32_t> of_warp(0, kWarps);
  const bool measured = due.now();
  uint32_t most = with_total ? maxima.load(channels) : 0;
  if (!with_total) {
    for (int64_t c = thread_index(); c < channels; c += kThreads) {
      most = larger(most, maxima.load(c));
    }
    most = reduce_warp(most, larger);
    if (lane_index() == 0) of_warp.store(warp_index(), most);
  }
  barrier();  // also: nobody reads the iteration after this
  if (!with_total) {
    for (int w = 0; w < kWarps; ++w) most = larger(most, of_warp.load(w));
  }
  if (thread_index() == 0) iteration.store(0, iteration.load(0) + 1);
  for (int64_t i = thread_index(); i <= channels; i += kThreads) {
    const float maximum = float_of_bits(i < channels ? maxima.load(i) : most);
    const bool finite = is_finite(maximum);
    float result = maximum;
    if (rules.mcs) {
      if (measured && finite) {
        const double values = i < channels ? of_channel : of_channel * channels;
        const double share = static_cast<double>(counts.load(i)) / values;
        tails.store(i, maximum == 0.0f ? 1.0f : static_cast<float>(share));
      }
      const float previous = threshold.load(i);
      const bool keeps = tails.load(i) > rules.gaussian_above || previous == 0.0f || !finite;
      if (!keeps) {
        result = add(multiply(previous, rules.decay), multiply(maximum, rules.gain));
        if (rules.cap) result = fminf(result, maximum);
      }
    }
    used.store(i, result);
    if (is_finite(result)) threshold.store(i, result);
  }
}

// How a gradient is swept, and the device memory that this takes: counts (channels + 1), maxima
// (channels), and with moments these (2, channels) and their partials.
struct Sweep {
  const FloatImage& g;
  bool vectors;
  Columns columns;
  Pieces pieces;
  int64_t parts;  // of moments

  explicit Sweep(const FloatImage& image)
      : g(image),
        vectors(reinterpret_cast<uintptr_t>(image.values.data) % 16 == 0 &&
                image.c % kVector == 0),
        columns(image.rows(), image.c, vectors, kMostParts),
        pieces(image) {
    const int64_t most = std::max<int64_t>(kMostMomentParts / columns.grid.y, 1);
    parts = image.last ? std::min(columns.parts, most) : pieces.parts();
  }

  int64_t zeroed_bytes() const { return (g.c + 1) * sizeof(Counter) + (g.c + 1) / 2 * 8; }
  int64_t bytes(bool moments) const {
    return zeroed_bytes() + (moments ? 2 * g.c * (parts + 1) * sizeof(double) : 0);
  }
  Global<Counter> counts(void* at) const { return {static_cast<Counter*>(at), g.c + 1}; }
  uint32_t* maxima_at(void* at) const {
    return reinterpret_cast<uint32_t*>(static_cast<Counter*>(at) + g.c + 1);
  }
  Global<uint32_t> maxima(void* at) const { return {maxima_at(at), g.c}; }
  double* moments_at(void* at) const {
    return reinterpret_cast<double*>(static_cast<uint8_t*>(at) + zeroed_bytes());
  }
  Partials partials(void* at) const {
    return {Global<double>(partials_at(at), 2 * g.c * parts), g.c, parts};
  }
  double of_channel() const { return static_cast<double>(g.rows()); }

  double* partials_at(void* at) const { return moments_at(at) + 2 * g.c; }

  // Maxima, and partial moments where due.
  void run(const Due& due, void* at, Stream stream) const {
    const bool moments_wanted = due.measure != Measure::kNever;
    const Partials own = moments_wanted ? partials(at) : Partials{{}, g.c, parts};
    clear(at, zeroed_bytes(), stream);
    with_float_type(g.values.type, [&](auto type) {
      const auto source = source_of<type()>(g.values);
      if (g.last) {
        const auto kernel = vectors ? sweep_columns<type(), kVector> : sweep_columns<type(), 1>;
        launch(kernel, columns.grid, kThreads, scratch_bytes(), stream, source,
               ColumnWalk(columns), due, own, maxima(at));
      } else {
        launch(sweep_rows<type()>, pieces.grid(), kThreads, 0, stream, source, pieces, due, own,
               maxima(at));
      }
    });
  }

  void combine(const Due& due, void* at, Stream stream) const {
    combine_moments(due, partials_at(at), g.c, parts, moments_at(at), stream);
  }

  void count_tails(const Due& due, void* at, Stream stream) const {
    const Limits limits{Global<const double>(moments_at(at), 2 * g.c), g.c, of_channel()};
    const int64_t shared = kLimitsBytes + scratch_bytes();
    with_float_type(g.values.type, [&](auto type) {
      const auto source = source_of<type()>(g.values);
      if (g.last) {
        const auto kernel = vectors ? tails_columns<type(), kVector> : tails_columns<type(), 1>;
        launch(kernel, columns.grid, kThreads, shared, stream, source, ColumnWalk(columns), due,
               limits, counts(at));
      } else {
        launch(tails_rows<type()>, pieces.grid(), kThreads, shared, stream, source, pieces, due,
               limits, counts(at));
      }
    });
  }

 private:
  int64_t scratch_bytes() const { return kThreads * columns.width * sizeof(double); }
};

}  // namespace

int64_t update_thresholds_workspace(const FloatImage& g, bool mcs) { return Sweep(g).bytes(mcs); }

void update_thresholds(const FloatImage& g, const ThresholdRules& rules, int64_t interval,
                       const ThresholdState& state, void* workspace, float* used, Stream stream) {
  const Sweep sweep(g);
  const Due due{rules.mcs ? Measure::kAtInterval : Measure::kNever,
                Global<int64_t>(state.iteration, 1), interval};
  sweep.run(due, workspace, stream);
  if (rules.mcs) {
    sweep.combine(due, workspace, stream);
    sweep.count_tails(due, workspace, stream);
  }
  launch(move_kernel, Grid{}, kThreads, kWarps * sizeof(uint32_t), stream,
         Global<const uint32_t>(sweep.maxima_at(workspace), g.c), g.c, false, rules, due,
         Global<const Counter>(static_cast<const Counter*>(workspace), g.c + 1),
         sweep.of_channel(), Global<float>(state.threshold, g.c + 1),
         Global<float>(state.tail_probability, g.c + 1), Global<int64_t>(state.iteration, 1),
         Global<float>(used, g.c + 1));
}

void combine_moments(const Due& due, const double* partials, int64_t channels, int64_t parts,
                     double* moments, Stream stream) {
  launch_combine(due, partials, 2 * channels, parts, Global<double>(moments, 2 * channels), {},
                 stream);
}

void move_thresholds_by(const Due& due, const float* maxima, const Counter* counts, int64_t c,
                        double of_channel, const ThresholdRules& rules,
                        const ThresholdState& state, float* used, Stream stream) {
  launch(move_kernel, Grid{}, kThreads, kWarps * sizeof(uint32_t), stream,
         Global<const uint32_t>(reinterpret_cast<const uint32_t*>(maxima), c + 1), c, true, rules,
         due, counts == nullptr ? Global<const Counter>() : Global<const Counter>(counts, c + 1),
         of_channel, Global<float>(state.threshold, c + 1),
         Global<float>(state.tail_probability, c + 1), Global<int64_t>(state.iteration, 1),
         Global<float>(used, c + 1));
}

void move_thresholds(const float* maximum, int64_t c, const ThresholdRules& rules,
                     const ThresholdState& state, float* used, Stream stream) {
  move_thresholds_by(Due{}, maximum, nullptr, c, 0.0, rules, state, used, stream);
}

int64_t channel_sums_workspace(const FloatImage& g) { return Sweep(g).bytes(true); }

void channel_sums(const FloatImage& g, void* workspace, float* sums, Stream stream) {
  const Sweep sweep(g);
  const Due always{Measure::kAlways, {}, 1};
  sweep.run(always, workspace, stream);
  launch_combine(always, sweep.partials_at(workspace), g.c, sweep.parts, {},
                 Global<float>(sums, g.c), stream);
}

void combine_parts(const double* partials, int64_t entries, int64_t parts, double* sums,
                   Stream stream) {
  launch_combine(Due{Measure::kAlways, {}, 1}, partials, entries, parts,
                 Global<double>(sums, entries), {}, stream);
}

}  // namespace daq_mm::cuda
