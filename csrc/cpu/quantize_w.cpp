// daq_mm::quantize_w and daq_mm::quantize_w_folded: weights to 8 bits.
//
//   q = round_half_even(w * inverse)                      one threshold a tensor
//   q = round_half_even(w[c][i] * g_step[c] * inverse[i]) one threshold an input channel i of its
//                                                         group, over the folded values
//
// Both read the weights twice, in their own memory order, contiguous or channels-last, which the
// bytes keep: the products pack either. The ops, whose results are contiguous
// unless keep_format is set, transpose the rows of a channels-last weight afterwards.

#include <algorithm>
#include <mutex>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/float_loops.h"
#include "cpu/float_view.h"
#include "cpu/products.h"
#include "cpu/quantize.h"
#include "cpu/transpose_bytes.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGrain = 32768;

// Rows of a weight: output channel c holds `row` values, [ci][taps] or, if `last`, [taps][ci].
struct WeightView {
  at::Tensor tensor;
  bool last;
  int64_t co, ci, taps, row;

  explicit WeightView(const at::Tensor& w)
      : last(w.is_contiguous(channels_last_format(w.dim() - 2)) && !w.is_contiguous()),
        co(w.size(0)),
        ci(w.size(1)) {
    tensor = last ? w : w.contiguous();
    row = 1;
    for (int64_t axis = 1; axis < w.dim(); ++axis) row *= w.size(axis);
    taps = ci == 0 ? 0 : row / ci;
  }

  // The tensor for the bytes, in this memory order.
  at::Tensor empty_bytes() const {
    return at::empty_like(tensor, tensor.options().dtype(at::kChar));
  }

  // Calls f(channel, value of a row) for the values of a row in memory order.
  template <typename F>
  void for_row(const F& f) const {
    int64_t i = 0;
    if (last) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t channel = 0; channel < ci; ++channel, ++i) f(channel, i);
      }
    } else {
      for (int64_t channel = 0; channel < ci; ++channel) {
        for (int64_t tap = 0; tap < taps; ++tap, ++i) f(channel, i);
      }
    }
  }
};

// Calls f(begin, end) for parts of the rows, in parallel.
template <typename F>
void for_rows(const WeightView& view, const F& f) {
  const int64_t grain = std::max(kGrain / std::max(view.row, int64_t{1}), int64_t{1});
  at::parallel_for(0, view.co, grain, f);
}

// Thresholds (groups * Ci,) of the folded weight. Each thread reads rows in order.
std::vector<float> folded_thresholds(const WeightView& view, const std::vector<float>& g_step,
                                     int64_t groups) {
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const int64_t rows = std::max(view.co / groups, int64_t{1});
  std::vector<uint32_t> bits(groups * view.ci);
  std::mutex merging;
  for_rows(view, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kPiece], folded[kPiece];
    std::vector<uint32_t> maxima(view.row);
    for (int64_t c = begin; c < end;) {
      const int64_t group = c / rows, stop = std::min((group + 1) * rows, end);
      std::fill(maxima.begin(), maxima.end(), 0);
      for (; c < stop; ++c) {
        for_pieces(0, view.row, [&](int64_t at, int64_t count) {
          const float* v = reader.read(c * view.row + at, count, buffer);
          loops.scale(v, g_step[c], count, folded);
          loops.float32.maxima(folded, count, maxima.data() + at);
        });
      }
      uint32_t* own = bits.data() + group * view.ci;
      const std::lock_guard<std::mutex> lock(merging);
      view.for_row([&](int64_t channel, int64_t i) {
        own[channel] = std::max(own[channel], maxima[i]);
      });
    }
  });
  std::vector<float> thresholds(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) thresholds[i] = float_from_bits(bits[i]);
  return thresholds;
}

// Bytes in the order of `view` to contiguous ones.
at::Tensor to_contiguous(const WeightView& view, const at::Tensor& q) {
  if (!view.last) return q;
  at::Tensor dense = at::empty(q.sizes(), q.options());
  const auto* from = reinterpret_cast<const uint8_t*>(q.const_data_ptr<int8_t>());
  auto* to = reinterpret_cast<uint8_t*>(dense.mutable_data_ptr<int8_t>());
  for_rows(view, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      transpose_bytes(from + c * view.row, view.ci, view.taps, view.ci, to + c * view.row,
                      view.taps);
    }
  });
  return dense;
}

}  // namespace

QuantizedW quantize_w_cpu(const at::Tensor& w) {
  const WeightView view(w);
  const float threshold = absolute_maximum(view.tensor);
  const float inverse = inverse_step(threshold, 127.0f);
  at::Tensor q = view.empty_bytes();
  at::Tensor step = at::empty({1}, w.options().dtype(at::kFloat));
  *step.mutable_data_ptr<float>() = threshold / 127.0f;
  const FloatReader reader(view.tensor, float_loops());
  auto* out = reinterpret_cast<uint8_t*>(q.mutable_data_ptr<int8_t>());
  at::parallel_for(0, w.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for_pieces_backward(begin, end, [&](int64_t at, int64_t count) {
      reader.quantize(at, count, inverse, 127.0f, 0, out + at);
    });
  });
  return {q, step};
}

QuantizedW quantize_w_folded_cpu(const at::Tensor& w, const at::Tensor& g_threshold,
                                 int64_t groups) {
  const WeightView view(w);
  const at::Tensor thresholds_g = g_threshold.contiguous();
  std::vector<float> g_step(view.co);
  for (int64_t c = 0; c < view.co; ++c) {
    g_step[c] = thresholds_g.const_data_ptr<float>()[c] / 127.0f;
  }
  const auto thresholds = folded_thresholds(view, g_step, groups);
  at::Tensor q = view.empty_bytes();
  at::Tensor step = at::empty({groups * view.ci}, w.options().dtype(at::kFloat));
  float* steps = step.mutable_data_ptr<float>();
  std::vector<float> by_channel(thresholds.size());
  for (size_t i = 0; i < thresholds.size(); ++i) {
    steps[i] = thresholds[i] / 127.0f;
    by_channel[i] = inverse_step(thresholds[i], 127.0f);
  }
  std::vector<float> inverse(groups * view.row);  // in memory order, as the rows
  for (int64_t group = 0; group < groups; ++group) {
    const float* own = by_channel.data() + group * view.ci;
    float* to = inverse.data() + group * view.row;
    view.for_row([&](int64_t channel, int64_t i) { to[i] = own[channel]; });
  }
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const int64_t rows = std::max(view.co / groups, int64_t{1});
  int8_t* out = q.mutable_data_ptr<int8_t>();
  for_rows(view, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kPiece], folded[kPiece];
    // Backward: the last rows were read last, and may still be in the caches.
    for (int64_t c = end - 1; c >= begin; --c) {
      const float* own = inverse.data() + c / rows * view.row;
      for_pieces(0, view.row, [&](int64_t at, int64_t count) {
        loops.scale(reader.read(c * view.row + at, count, buffer), g_step[c], count, folded);
        loops.float32.quantize_each(folded, own + at, count, out + c * view.row + at);
      });
    }
  });
  return {q, step};
}

namespace {

std::tuple<at::Tensor, at::Tensor> quantize_w(const at::Tensor& w) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  const auto quantized = quantize_w_cpu(w);
  return {to_contiguous(WeightView(w), quantized.q), quantized.step};
}

std::tuple<at::Tensor, at::Tensor> quantize_w_folded(const at::Tensor& w,
                                                     const at::Tensor& g_threshold,
                                                     int64_t groups, bool keep_format) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  check_dtype(g_threshold, at::kFloat, "g_threshold");
  check_size(g_threshold, {w.size(0)}, "g_threshold");
  TORCH_CHECK_VALUE(groups >= 1 && w.size(0) % groups == 0, "groups=", groups,
                    " must be at least 1 and divide the ", w.size(0), " output channels");
  const auto quantized = quantize_w_folded_cpu(w, g_threshold, groups);
  if (keep_format) return {quantized.q, quantized.step};
  return {to_contiguous(WeightView(w), quantized.q), quantized.step};
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("quantize_w", &quantize_w);
  m.impl("quantize_w_folded", &quantize_w_folded);
}

}  // namespace daq_mm::cpu
