// daq_mm::update_thresholds: a gradient's absolute maxima, and the layer's threshold state moved on.
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

at::Tensor update_thresholds(const at::Tensor& g, at::Tensor& threshold,
                             at::Tensor& tail_probability, at::Tensor& iteration, bool mcs,
                             double decay, double gain, bool cap, double gaussian_above,
                             int64_t interval) {
  check_float(g, "g");
  check_spatial_rank(g, "g");
  const int64_t entries = g.size(1) + 1;
  check_dtype(threshold, at::kFloat, "threshold");
  check_size(threshold, {entries}, "threshold");
  check_dtype(tail_probability, at::kFloat, "tail_probability");
  check_size(tail_probability, {entries}, "tail_probability");
  check_dtype(iteration, at::kLong, "iteration");
  check_size(iteration, {1}, "iteration");
  TORCH_CHECK_VALUE(interval >= 1, "interval=", interval, " must be at least 1");
  if (g.numel() == 0) return threshold.clone();

  const FloatView view(g);
  int64_t& seen = *iteration.mutable_data_ptr<int64_t>();
  const bool measure = mcs && seen % interval == 0;
  ChannelMoments moments;
  const std::vector<float> maximum = channel_maxima(view, measure ? &moments : nullptr);
  std::vector<float> share;
  if (measure) share = tail_probabilities(view, maximum, moments);

  at::Tensor used = at::empty({entries}, threshold.options());
  float* out = used.mutable_data_ptr<float>();
  auto state = threshold.accessor<float, 1>();
  auto tails = tail_probability.accessor<float, 1>();
  const float keep = static_cast<float>(decay), add = static_cast<float>(gain);
  const float limit = static_cast<float>(gaussian_above);
  for (int64_t c = 0; c < entries; ++c) {
    const bool finite = std::isfinite(maximum[c]);
    out[c] = maximum[c];
    if (mcs) {
      if (measure && finite) tails[c] = share[c];
      const float previous = state[c];
      const bool keeps_maximum = tails[c] > limit || previous == 0.0f || !finite;
      if (!keeps_maximum) {
        const float recursion = previous * keep + maximum[c] * add;
        out[c] = cap ? std::min(recursion, maximum[c]) : recursion;
      }
    }
    if (std::isfinite(out[c])) state[c] = out[c];
  }
  seen += 1;
  return used;
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("update_thresholds", &update_thresholds); }

}  // namespace daq_mm::cpu
