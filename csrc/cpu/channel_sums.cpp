// Sweeps of channel_sums.h.
//
// The tensor is cut into parts whose number depends on its size alone; each part has its own
// results, which are combined in order. Channels-first, a part is one (n, c) row of positions.
// Channels-last, it is a range of pixels, read as runs of several pixels with one accumulator for
// each value of a run, so that vectors run over the channels whatever their number.

#include "cpu/channel_sums.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGrain = 32768;       // values worth a thread
constexpr int64_t kPartValues = 65536;  // values of a part at least
constexpr int64_t kMaxParts = 256;

// How a view is cut, and where each part's accumulators lie.
struct Parts {
  const FloatView& view;
  int64_t count;   // parts
  int64_t period;  // accumulators of a part: a run of whole pixels, or 1 channels-first
  int64_t runs;    // channels-last: periods in the tensor, the last one perhaps partial

  explicit Parts(const FloatView& v) : view(v), count(v.n * v.c), period(1), runs(0) {
    if (!v.last) return;
    period = v.c * std::max(kPiece / 2 / v.c, int64_t{1});
    runs = (v.numel() + period - 1) / period;
    count = std::clamp(v.numel() / kPartValues, int64_t{1}, std::min(kMaxParts, runs));
  }

  // Calls f(part, i, at, count): values [at, at + count) belong to accumulators i, i + 1, ... of the
  // part or, channels-first, all to its only one.
  template <typename F>
  void sweep(const F& f) const {
    const int64_t values = view.numel() / count;
    at::parallel_for(0, count, std::max(kGrain / std::max(values, int64_t{1}), int64_t{1}),
                     [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        if (!view.last) {
          for_pieces(part * view.spatial, (part + 1) * view.spatial,
                     [&](int64_t at, int64_t n) { f(part, 0, at, n); });
          continue;
        }
        for (int64_t run = runs * part / count; run < runs * (part + 1) / count; ++run) {
          const int64_t start = run * period;
          for_pieces(start, std::min(start + period, view.numel()),
                     [&](int64_t at, int64_t n) { f(part, at - start, at, n); });
        }
      }
    });
  }

  // Calls f(channel, accumulator's index over all parts), parts in order.
  template <typename F>
  void combine(const F& f) const {
    for (int64_t part = 0; part < count; ++part) {
      const int64_t at = part * period;
      if (!view.last) {
        f(part % view.c, at);
        continue;
      }
      for (int64_t pixel = 0; pixel < period; pixel += view.c) {
        for (int64_t c = 0; c < view.c; ++c) f(c, at + pixel + c);
      }
    }
  }
};

// Adds n values from `at` on to the sums: each to its own or, channels-first, all to the first.
void add_moments(const FloatView& view, const FloatReader& reader, int64_t at, int64_t n,
                 double* sums, double* squares) {
  const auto& loops = float_loops();
  alignas(64) float buffer[kPiece];
  (view.last ? loops.moments_each : loops.moments)(reader.read(at, n, buffer), n, sums, squares);
}

}  // namespace

std::vector<float> channel_maxima(const FloatView& view, ChannelMoments* moments) {
  const FloatReader reader(view.tensor, float_loops());
  const Parts parts(view);
  const int64_t size = parts.count * parts.period;
  std::vector<uint32_t> bits(size);
  std::vector<double> sum(moments ? size : 0), squares(moments ? size : 0);
  parts.sweep([&](int64_t part, int64_t i, int64_t at, int64_t n) {
    const int64_t to = part * parts.period + i;
    if (view.last) {
      reader.maxima(at, n, bits.data() + to);
    } else {
      uint32_t raw = 0;
      reader.extremes(at, n, &bits[to], &raw);
    }
    if (moments) add_moments(view, reader, at, n, &sum[to], &squares[to]);
  });
  std::vector<uint32_t> most(view.c + 1);
  if (moments) *moments = {std::vector<double>(view.c), std::vector<double>(view.c)};
  parts.combine([&](int64_t c, int64_t at) {
    most[c] = std::max(most[c], bits[at]);
    if (moments) {
      moments->sum[c] += sum[at];
      moments->squares[c] += squares[at];
    }
  });
  most[view.c] = *std::max_element(most.begin(), most.end() - 1);
  std::vector<float> maximum(view.c + 1);
  for (int64_t c = 0; c <= view.c; ++c) maximum[c] = float_from_bits(most[c]);
  return maximum;
}

ChannelTails channel_tails(const FloatView& view, const std::vector<float>& own, float all) {
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const Parts parts(view);
  const int64_t size = parts.count * parts.period;
  ChannelTails tails{std::vector<int64_t>(view.c), std::vector<int64_t>(view.c)};
  if (!view.last) {
    std::vector<int64_t> above_own(size), above_all(size);
    parts.sweep([&](int64_t part, int64_t, int64_t at, int64_t n) {
      alignas(64) float buffer[kPiece];
      loops.tails(reader.read(at, n, buffer), own[part % view.c], all, n, &above_own[part],
                  &above_all[part]);
    });
    parts.combine([&](int64_t c, int64_t at) {
      tails.above_own[c] += above_own[at];
      tails.above_all[c] += above_all[at];
    });
    return tails;
  }
  std::vector<float> limits(parts.period);
  for (int64_t i = 0; i < parts.period; ++i) limits[i] = own[i % view.c];
  std::vector<int32_t> above_own(size), above_all(size);
  parts.sweep([&](int64_t part, int64_t i, int64_t at, int64_t n) {
    alignas(64) float buffer[kPiece];
    const int64_t to = part * parts.period + i;
    loops.tails_each(reader.read(at, n, buffer), limits.data() + i, all, n, above_own.data() + to,
                     above_all.data() + to);
  });
  parts.combine([&](int64_t c, int64_t at) {
    tails.above_own[c] += above_own[at];
    tails.above_all[c] += above_all[at];
  });
  return tails;
}

std::vector<float> channel_sums(const FloatView& view) {
  const FloatReader reader(view.tensor, float_loops());
  const Parts parts(view);
  std::vector<double> sum(parts.count * parts.period), squares(sum.size());
  parts.sweep([&](int64_t part, int64_t i, int64_t at, int64_t n) {
    const int64_t to = part * parts.period + i;
    add_moments(view, reader, at, n, &sum[to], &squares[to]);
  });
  std::vector<double> total(view.c);
  parts.combine([&](int64_t c, int64_t at) { total[c] += sum[at]; });
  return {total.begin(), total.end()};
}

}  // namespace daq_mm::cpu
