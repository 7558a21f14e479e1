// What the ops around glue.h's loops share: arrays of one number a channel, padded to whole vectors,
// checks, and the division of pixels into parts for threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "checks.h"
#include "cpu/glue.h"
#include "cpu/op_checks.h"

namespace daq_mm::cpu {

using MaybeTensor = std::optional<at::Tensor>;

// Floats of the channels; any NaN becomes the plain one, which the loops' rounding needs.
inline std::vector<float> padded_channels(const std::vector<float>& values) {
  std::vector<float> padded(glue_width(static_cast<int64_t>(values.size())), 0.0f);
  for (size_t c = 0; c < values.size(); ++c) {
    padded[c] = std::isnan(values[c]) ? std::numeric_limits<float>::quiet_NaN() : values[c];
  }
  return padded;
}

inline std::vector<float> padded_channels(const at::Tensor& values) {
  return padded_channels(to_floats(values));
}

// float32 (C,) or nothing, but both or neither.
inline void check_mean_and_invstd(const MaybeTensor& mean, const MaybeTensor& invstd, int64_t c) {
  TORCH_CHECK_VALUE(mean.has_value() == invstd.has_value(),
                    "mean and invstd must both be given or both be None");
  if (!mean.has_value()) return;
  check_dtype(*mean, at::kFloat, "mean");
  check_size(*mean, {c}, "mean");
  check_dtype(*invstd, at::kFloat, "invstd");
  check_size(*invstd, {c}, "invstd");
}

// A float activation or gradient, channels-last.
inline void check_activation(const at::Tensor& t, const char* name) {
  check_float(t, name);
  check_spatial_rank(t, name);
  check_channels_last(t, t.scalar_type(), name);
}

inline void check_alike(const at::Tensor& t, const at::Tensor& like, at::ScalarType dtype,
                        const char* name) {
  check_size(t, like.sizes(), name);
  check_channels_last(t, dtype, name);
}

inline std::vector<int64_t> mask_size(const at::Tensor& x) {
  std::vector<int64_t> size{x.size(0)};
  for (int64_t a = 2; a < x.dim(); ++a) size.push_back(x.size(a));
  size.push_back(mask_bytes(x.size(1)));
  return size;
}

inline int64_t pixels_of(const at::Tensor& x) {
  return x.size(1) == 0 ? 0 : x.numel() / x.size(1);
}

constexpr int64_t kGlueGrain = 32768;  // values worth a thread

// Calls f(first, last) for ranges of pixels, on several threads.
template <typename F>
void for_pixels(const at::Tensor& x, const F& f) {
  const int64_t grain = std::max(kGlueGrain / std::max(x.size(1), int64_t{1}), int64_t{1});
  at::parallel_for(0, pixels_of(x), grain, f);
}

// Pixels cut into parts whose number depends on the tensor's size alone, for sums that do not depend
// on the number of threads. A part has enough pixels that its accumulators weigh little.
struct PixelParts {
  int64_t pixels;
  int64_t count;

  explicit PixelParts(const at::Tensor& x)
      : pixels(pixels_of(x)),
        count(std::clamp(std::min(pixels / 128, x.numel() / (2 * kGlueGrain)), int64_t{1},
                         int64_t{64})) {}

  // Calls f(part, first, last).
  template <typename F>
  void run(const F& f) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        f(part, pixels * part / count, pixels * (part + 1) / count);
      }
    });
  }
};

}  // namespace daq_mm::cpu
