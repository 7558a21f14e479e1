// daq_mm::update_thresholds: a gradient's absolute maxima, and the layer's threshold state moved on;
// daq_mm::thresholds_from_maxima: the latter alone.
//
//   maximum[c] = max |g[:, c]|, and of the whole tensor
//   tail[c] = share of |g[:, c]| above its standard deviation, every `interval`-th gradient
//   threshold[c] = tail[c] > gaussian_above ? maximum[c] : decay * threshold[c] + gain * maximum[c]
//                  and, with `cap`, at most maximum[c]
//
// g in either memory order. One sweep yields maxima, and sums and sums of squares (in double) where
// tails are due; a second one counts the tails. Work is cut into parts whose number depends on the
// size alone, so that the sums don't depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/channel_sums.h"
#include "cpu/float_loops.h"
#include "cpu/float_view.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

// The largest float that is not above `value`: |v| > value is |v| > that, for floats v.
float float_below(double value) {
  const float near = static_cast<float>(value);
  return static_cast<double>(near) > value
             ? std::nextafter(near, -std::numeric_limits<float>::infinity())
             : near;
}

double deviation(double sum, double squares, double count) {
  const double mean = sum / count;
  return std::sqrt(std::max(squares / count - mean * mean, 0.0));
}

// P(|g| > sigma) for each channel and then for the tensor; 1 for those with nothing but zeros.
std::vector<float> tail_probabilities(const FloatView& g, const std::vector<float>& maximum,
                                      const ChannelMoments& moments) {
  const double per_channel = static_cast<double>(g.n * g.spatial);
  std::vector<float> own(g.c);
  double sum = 0, squares = 0;
  for (int64_t c = 0; c < g.c; ++c) {
    own[c] = float_below(deviation(moments.sum[c], moments.squares[c], per_channel));
    sum += moments.sum[c];
    squares += moments.squares[c];
  }
  const double total = per_channel * static_cast<double>(g.c);
  const ChannelTails tails = channel_tails(g, own, float_below(deviation(sum, squares, total)));
  std::vector<float> share(g.c + 1);
  int64_t above = 0;
  for (int64_t c = 0; c < g.c; ++c) {
    share[c] = static_cast<float>(static_cast<double>(tails.above_own[c]) / per_channel);
    above += tails.above_all[c];
  }
  share[g.c] = static_cast<float>(static_cast<double>(above) / total);
  for (int64_t c = 0; c <= g.c; ++c) {
    if (maximum[c] == 0.0f) share[c] = 1.0f;
  }
  return share;
}

void check_state(int64_t entries, const at::Tensor& threshold, const at::Tensor& tail_probability,
                 const at::Tensor& iteration) {
  check_dtype(threshold, at::kFloat, "threshold");
  check_size(threshold, {entries}, "threshold");
  check_dtype(tail_probability, at::kFloat, "tail_probability");
  check_size(tail_probability, {entries}, "tail_probability");
  check_dtype(iteration, at::kLong, "iteration");
  check_size(iteration, {1}, "iteration");
}

// The rules by which thresholds follow from maxima and tail probabilities.
struct Rules {
  bool mcs;
  float decay, gain;
  bool cap;
  float gaussian_above;

  at::Tensor move(const std::vector<float>& maximum, at::Tensor& threshold,
                  const at::Tensor& tail_probability, at::Tensor& iteration) const {
    const int64_t entries = static_cast<int64_t>(maximum.size());
    at::Tensor used = at::empty({entries}, threshold.options());
    float* out = used.mutable_data_ptr<float>();
    auto state = threshold.accessor<float, 1>();
    const auto tails = tail_probability.accessor<float, 1>();
    for (int64_t c = 0; c < entries; ++c) {
      const float previous = state[c];
      const bool keeps_maximum = !mcs || tails[c] > gaussian_above || previous == 0.0f ||
                                 !std::isfinite(maximum[c]);
      out[c] = maximum[c];
      if (!keeps_maximum) {
        const float recursion = previous * decay + maximum[c] * gain;
        out[c] = cap ? std::min(recursion, maximum[c]) : recursion;
      }
      if (std::isfinite(out[c])) state[c] = out[c];
    }
    *iteration.mutable_data_ptr<int64_t>() += 1;
    return used;
  }
};

at::Tensor update_thresholds(const at::Tensor& g, at::Tensor& threshold,
                             at::Tensor& tail_probability, at::Tensor& iteration, bool mcs,
                             double decay, double gain, bool cap, double gaussian_above,
                             int64_t interval) {
  check_float(g, "g");
  check_spatial_rank(g, "g");
  const int64_t entries = g.size(1) + 1;
  check_state(entries, threshold, tail_probability, iteration);
  TORCH_CHECK_VALUE(interval >= 1, "interval=", interval, " must be at least 1");
  if (g.numel() == 0) return threshold.clone();

  const FloatView view(g);
  const Rules rules{mcs, static_cast<float>(decay), static_cast<float>(gain), cap,
                    static_cast<float>(gaussian_above)};
  const bool measure = mcs && *iteration.const_data_ptr<int64_t>() % interval == 0;
  ChannelMoments moments;
  const std::vector<float> maximum = channel_maxima(view, measure ? &moments : nullptr);
  if (measure) {
    const std::vector<float> share = tail_probabilities(view, maximum, moments);
    auto tails = tail_probability.accessor<float, 1>();
    for (int64_t c = 0; c < entries; ++c) {
      if (std::isfinite(maximum[c])) tails[c] = share[c];
    }
  }
  return rules.move(maximum, threshold, tail_probability, iteration);
}

at::Tensor thresholds_from_maxima(const at::Tensor& maximum, at::Tensor& threshold,
                                  const at::Tensor& tail_probability, at::Tensor& iteration,
                                  bool mcs, double decay, double gain, bool cap,
                                  double gaussian_above) {
  check_dtype(maximum, at::kFloat, "maximum");
  TORCH_CHECK_VALUE(maximum.dim() == 1, "maximum has ", maximum.dim(), " axes; expected 1");
  check_state(maximum.size(0), threshold, tail_probability, iteration);
  const Rules rules{mcs, static_cast<float>(decay), static_cast<float>(gain), cap,
                    static_cast<float>(gaussian_above)};
  const at::Tensor dense = maximum.contiguous();
  const float* values = dense.const_data_ptr<float>();
  return rules.move({values, values + dense.numel()}, threshold, tail_probability, iteration);
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("update_thresholds", &update_thresholds);
  m.impl("thresholds_from_maxima", &thresholds_from_maxima);
}

}  // namespace daq_mm::cpu
