// daq_mm::quantize_w and daq_mm::quantize_w_folded: weights to 8 bits, contiguous.
//
//   q = round_half_even(w * inverse)                      one threshold a tensor
//   q = round_half_even(w[c][i] * g_step[c] * inverse[i]) one threshold an input channel i of its
//                                                         group, over the folded values
//
// Weights are read in their own memory order, contiguous or channels-last, one output channel at a
// time; a channels-last row is transposed after it has become bytes.

#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
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
  int64_t channel_at(int64_t i) const { return last ? i % ci : i / taps; }

  // A row of bytes in memory order to its place in the contiguous result.
  void place(const std::vector<uint8_t>& bytes, int8_t* out) const {
    transpose_bytes(bytes.data(), ci, taps, ci, reinterpret_cast<uint8_t*>(out), taps);
  }
};

// Calls f(c, bytes) for each row in parallel; f writes the row's bytes in memory order.
template <typename F>
void for_rows(const WeightView& view, int8_t* out, const F& f) {
  const int64_t grain = std::max(kGrain / std::max(view.row, int64_t{1}), int64_t{1});
  at::parallel_for(0, view.co, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(view.last ? view.row : 0);
    for (int64_t c = begin; c < end; ++c) {
      int8_t* place = out + c * view.row;
      f(c, view.last ? reinterpret_cast<int8_t*>(bytes.data()) : place);
      if (view.last) view.place(bytes, place);
    }
  });
}

// Thresholds (Ci,) of the folded weight: each task takes some columns of all rows of a group.
std::vector<float> folded_thresholds(const WeightView& view, const std::vector<float>& g_step,
                                     int64_t groups) {
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const int64_t rows = view.co / groups;
  std::vector<uint32_t> maxima(groups * view.row);
  const int64_t across = (view.row + kPiece - 1) / kPiece;
  const int64_t grain = std::max(kGrain / (kPiece * std::max(rows, int64_t{1})), int64_t{1});
  at::parallel_for(0, groups * across, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kPiece], folded[kPiece];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / across, column = task % across * kPiece;
      const int64_t count = std::min(view.row - column, kPiece);
      uint32_t* own = maxima.data() + group * view.row + column;
      for (int64_t c = group * rows; c < (group + 1) * rows; ++c) {
        const float* v = reader.read(c * view.row + column, count, buffer);
        loops.scale(v, g_step[c], count, folded);
        loops.float32.maxima(folded, count, own);
      }
    }
  });
  std::vector<uint32_t> bits(groups * view.ci);
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; i < view.row; ++i) {
      uint32_t& target = bits[group * view.ci + view.channel_at(i)];
      target = std::max(target, maxima[group * view.row + i]);
    }
  }
  std::vector<float> thresholds(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) thresholds[i] = float_from_bits(bits[i]);
  return thresholds;
}

}  // namespace

QuantizedW quantize_w_cpu(const at::Tensor& w) {
  const WeightView view(w);
  const float threshold = absolute_maximum(view.tensor);
  const float inverse = inverse_step(threshold, 127.0f);
  at::Tensor q = at::empty(w.sizes(), w.options().dtype(at::kChar));
  at::Tensor step = at::empty({1}, w.options().dtype(at::kFloat));
  *step.mutable_data_ptr<float>() = threshold / 127.0f;
  const FloatReader reader(view.tensor, float_loops());
  for_rows(view, q.mutable_data_ptr<int8_t>(), [&](int64_t c, int8_t* bytes) {
    for_pieces(0, view.row, [&](int64_t at, int64_t count) {
      reader.quantize(c * view.row + at, count, inverse, 127.0f, 0,
                      reinterpret_cast<uint8_t*>(bytes) + at);
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
  at::Tensor q = at::empty(w.sizes(), w.options().dtype(at::kChar));
  at::Tensor step = at::empty({groups * view.ci}, w.options().dtype(at::kFloat));
  std::vector<float> inverse(groups * view.row);  // in memory order, as the rows
  for (int64_t i = 0; i < groups * view.ci; ++i) {
    step.mutable_data_ptr<float>()[i] = thresholds[i] / 127.0f;
  }
  for (int64_t i = 0; i < groups * view.row; ++i) {
    const int64_t channel = i / view.row * view.ci + view.channel_at(i % view.row);
    inverse[i] = inverse_step(thresholds[channel], 127.0f);
  }
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const int64_t rows = std::max(view.co / groups, int64_t{1});
  for_rows(view, q.mutable_data_ptr<int8_t>(), [&](int64_t c, int8_t* bytes) {
    alignas(64) float buffer[kPiece], folded[kPiece];
    const float* own = inverse.data() + c / rows * view.row;
    for_pieces(0, view.row, [&](int64_t at, int64_t count) {
      loops.scale(reader.read(c * view.row + at, count, buffer), g_step[c], count, folded);
      loops.float32.quantize_each(folded, own + at, count, bytes + at);
    });
  });
  return {q, step};
}

namespace {

std::tuple<at::Tensor, at::Tensor> quantize_w(const at::Tensor& w) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  auto quantized = quantize_w_cpu(w);
  return {quantized.q, quantized.step};
}

std::tuple<at::Tensor, at::Tensor> quantize_w_folded(const at::Tensor& w,
                                                     const at::Tensor& g_threshold,
                                                     int64_t groups) {
  check_float(w, "w");
  check_spatial_rank(w, "w");
  check_dtype(g_threshold, at::kFloat, "g_threshold");
  check_size(g_threshold, {w.size(0)}, "g_threshold");
  TORCH_CHECK_VALUE(groups >= 1 && w.size(0) % groups == 0, "groups=", groups,
                    " must be at least 1 and divide the ", w.size(0), " output channels");
  auto quantized = quantize_w_folded_cpu(w, g_threshold, groups);
  return {quantized.q, quantized.step};
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("quantize_w", &quantize_w);
  m.impl("quantize_w_folded", &quantize_w_folded);
}

}  // namespace daq_mm::cpu
