// daq_mm::quantize_x and daq_mm::quantize_g: activations and gradients to 8 bits, channels-last.
//
//   q = round_half_even(clamp(v * inverse)),  inverse = levels / threshold in float32, 0 where that
//   is not a finite number; step = threshold / levels
//
// quantize_x takes one pass for the threshold and one for the bytes, quantize_g the second alone.
// Channels-last input is read and written in order. Contiguous (channels-first) input goes through
// tiles of 64 channels x 256 positions, quantized in L1 and transposed on the way out. quantize_x's
// second pass runs backward, so that it meets the end of the first in the caches.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/float_loops.h"
#include "cpu/float_view.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"
#include "cpu/transpose_bytes.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // values worth a thread
constexpr int64_t kTileChannels = 64;
constexpr int64_t kTilePositions = 256;
constexpr int64_t kRowsAhead = 6;  // of a tile: each is too short for the hardware to run ahead
constexpr int32_t kSignedZeroPoint = 128;

at::Tensor empty_channels_last(const at::Tensor& like, at::ScalarType dtype) {
  return empty_results(like.sizes(), like.options().dtype(dtype),
                       channels_last_format(like.dim() - 2));
}

void atomic_maximum(std::atomic<uint32_t>& target, uint32_t value) {
  uint32_t seen = target.load(std::memory_order_relaxed);
  while (seen < value && !target.compare_exchange_weak(seen, value)) {
  }
}

// Channels-first tensors, tile by tile, the last first; quantize_row(at, n, channel, position,
// count, bytes) makes the bytes of values [at, at + count), which are of one channel from that
// position on.
template <typename F>
void transpose_tiles(const FloatView& view, const FloatReader& reader, uint8_t* out,
                     const F& quantize_row) {
  const int64_t across = (view.spatial + kTilePositions - 1) / kTilePositions;
  const int64_t grain = std::max(kGrain / (kTilePositions * view.c), int64_t{1});
  at::parallel_for(0, view.n * across, grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint8_t tile[kTileChannels * kTilePositions];
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t n = i / across, position = i % across * kTilePositions;
      const int64_t positions = std::min(view.spatial - position, kTilePositions);
      for (int64_t channel = 0; channel < view.c; channel += kTileChannels) {
        const int64_t channels = std::min(view.c - channel, kTileChannels);
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = (n * view.c + channel + c) * view.spatial + position;
          reader.prefetch(at + kRowsAhead * view.spatial, positions);
          quantize_row(at, n, channel + c, position, positions, tile + c * kTilePositions);
        }
        transpose_bytes(tile, kTilePositions, channels, positions,
                        out + (n * view.spatial + position) * view.c + channel, view.c);
      }
    }
  });
}

// Input of the hash for the value at `index`; its high word stays the same up to the next multiple
// of 2**32, so callers must not let a run cross one.
uint32_t hash_input(int64_t index, uint32_t seed) {
  return static_cast<uint32_t>(index) * kHashStride +
         static_cast<uint32_t>(index >> 32) * kHashHighStride + seed;
}

// Calls f(first, count) for the parts of [0, count) within which index = start + i * stride keeps
// its high word.
template <typename F>
void for_hash_runs(int64_t start, int64_t stride, int64_t count, const F& f) {
  for (int64_t done = 0; done < count;) {
    const int64_t index = start + done * stride;
    const int64_t boundary = ((index >> 32) + 1) << 32;
    const int64_t run = std::min(count - done, (boundary - index + stride - 1) / stride);
    f(done, run);
    done += run;
  }
}

// int8 to uint8, value + 128, while the bytes are in L1.
void move_by_128(uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) bytes[i] ^= 0x80;
}

// What quantize_g does to runs of at most kPiece values, with one inverse step or one a channel.
struct GradientQuantizer {
  const FloatReader& reader;
  const FloatLoops& loops;
  const std::vector<float>& inverse;  // (1,) or (C,), repeated to a period of kPiece or more
  bool by_channel;
  bool random;
  uint32_t seed;

  // Channels-last: values of memory positions index.., whose channel inverses start at `phase`.
  void in_order(int64_t index, int64_t phase, int64_t count, int8_t* out) const {
    const float* own = inverse.data() + (by_channel ? phase : 0);
    if (!random) {
      if (by_channel) {
        reader.quantize_each(index, count, own, out);
      } else {
        reader.quantize(index, count, own[0], 127.0f, 0, reinterpret_cast<uint8_t*>(out));
      }
      return;
    }
    alignas(64) float buffer[kPiece];
    const float* v = reader.read(index, count, buffer);
    for_hash_runs(index, 1, count, [&](int64_t first, int64_t some) {
      const uint32_t hash = hash_input(index + first, seed);
      if (by_channel) {
        loops.randomize_each(v + first, own + first, hash, some, out + first);
      } else {
        loops.randomize(v + first, own[0], hash, kHashStride, some, out + first);
      }
    });
  }

  // Channels-first: values [at, at + count) of one channel, which channels-last stand at index,
  // index + stride, ...
  void channel(int64_t at, int64_t c, int64_t index, int64_t stride, int64_t count,
               uint8_t* out) const {
    const float factor = inverse[by_channel ? c : 0];
    if (!random) {
      reader.quantize(at, count, factor, 127.0f, 0, out);
      return;
    }
    alignas(64) float buffer[kPiece];
    const float* v = reader.read(at, count, buffer);
    for_hash_runs(index, stride, count, [&](int64_t first, int64_t some) {
      loops.randomize(v + first, factor, hash_input(index + first * stride, seed),
                      static_cast<uint32_t>(stride) * kHashStride, some,
                      reinterpret_cast<int8_t*>(out) + first);
    });
  }
};

// Inverse steps of the channels, repeated so that a run of several pixels reads them in order.
std::vector<float> inverse_steps(const at::Tensor& threshold, bool by_channel) {
  const float* s = threshold.const_data_ptr<float>();
  std::vector<float> inverse(threshold.numel());
  for (size_t c = 0; c < inverse.size(); ++c) inverse[c] = inverse_step(s[c], 127.0f);
  if (!by_channel) return inverse;
  const size_t period = inverse.size();
  const size_t repeats = std::max<size_t>(2 * kPiece / period, 1);
  inverse.reserve(repeats * period);
  for (size_t i = period; i < repeats * period; ++i) inverse.push_back(inverse[i - period]);
  return inverse;
}

}  // namespace

float inverse_step(float threshold, float levels) {
  const float inverse = levels / threshold;
  return std::isfinite(inverse) && std::isfinite(threshold) ? inverse : 0.0f;
}

namespace {

struct Extremes {
  uint32_t magnitude, raw;  // as SourceLoops::extremes finds them
};

Extremes extremes(const at::Tensor& dense) {
  const FloatReader reader(dense, float_loops());
  std::atomic<uint32_t> magnitude{0}, raw{0};
  at::parallel_for(0, dense.numel(), kGrain, [&](int64_t begin, int64_t end) {
    uint32_t m = 0, r = 0;
    for_pieces(begin, end,
               [&](int64_t at, int64_t count) { reader.extremes(at, count, &m, &r); });
    atomic_maximum(magnitude, m);
    atomic_maximum(raw, r);
  });
  return {magnitude, raw};
}

// -0.0 is not below zero; NaN compares with nothing.
bool below_zero(uint32_t magnitude, uint32_t raw) {
  return raw > 0x80000000u || magnitude > 0x7F800000u;
}

}  // namespace

float absolute_maximum(const at::Tensor& dense) {
  return float_from_bits(extremes(dense).magnitude);
}

ActivationGrid activation_grid(uint32_t magnitude, uint32_t raw, bool allow_unsigned) {
  const bool is_unsigned = allow_unsigned && !below_zero(magnitude, raw);
  return {float_from_bits(magnitude), is_unsigned ? 255.0f : 127.0f,
          is_unsigned ? 0 : kSignedZeroPoint};
}

QuantizedX quantize_x_cpu(const at::Tensor& x, bool allow_unsigned) {
  const FloatView view(x);
  const Extremes found = extremes(view.tensor);
  return quantize_x_cpu(view.tensor, activation_grid(found.magnitude, found.raw, allow_unsigned));
}

QuantizedX quantize_x_cpu(const at::Tensor& x, const ActivationGrid& grid) {
  const FloatView view(x);
  const float levels = grid.levels;
  const int32_t zero_point = grid.zero_point;
  const float inverse = grid.inverse();
  at::Tensor q = empty_channels_last(x, at::kByte);
  uint8_t* out = q.mutable_data_ptr<uint8_t>();
  const FloatReader reader(view.tensor, float_loops());
  if (view.last) {
    at::parallel_for(0, view.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for_pieces_backward(begin, end, [&](int64_t at, int64_t count) {
        reader.quantize(at, count, inverse, levels, zero_point, out + at);
      });
    });
  } else {
    transpose_tiles(view, reader, out,
                    [&](int64_t at, int64_t, int64_t, int64_t, int64_t count, uint8_t* row) {
                      reader.quantize(at, count, inverse, levels, zero_point, row);
                    });
  }
  return {q, grid.step(), zero_point};
}

at::Tensor quantize_g_cpu(const at::Tensor& g, const at::Tensor& threshold,
                          const std::optional<at::Tensor>& seed, bool moved) {
  const FloatView view(g);
  at::Tensor q = empty_channels_last(g, moved ? at::kByte : at::kChar);
  if (view.numel() == 0) return q;
  const bool by_channel = threshold.numel() > 1;
  const auto inverse = inverse_steps(threshold.contiguous(), by_channel);
  const bool random = seed.has_value();
  const auto& loops = float_loops();
  const FloatReader reader(view.tensor, loops);
  const GradientQuantizer quantizer{
      reader, loops, inverse, by_channel, random,
      random ? static_cast<uint32_t>(*seed->const_data_ptr<int64_t>()) : 0};
  int8_t* out = static_cast<int8_t*>(q.data_ptr());
  if (!view.last) {
    transpose_tiles(view, reader, reinterpret_cast<uint8_t*>(out),
                    [&](int64_t at, int64_t n, int64_t c, int64_t position, int64_t count,
                        uint8_t* row) {
                      const int64_t index = (n * view.spatial + position) * view.c + c;
                      quantizer.channel(at, c, index, view.c, count, row);
                      if (moved) move_by_128(row, count);
                    });
    return q;
  }
  // Pieces start at a channel's boundary, or within a pixel of very many channels.
  const int64_t period = by_channel ? static_cast<int64_t>(inverse.size()) : kPiece;
  const int64_t periods = (view.numel() + period - 1) / period;
  at::parallel_for(0, periods, std::max(kGrain / period, int64_t{1}),
                   [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i * period;
      for_pieces(start, std::min(start + period, view.numel()), [&](int64_t at, int64_t count) {
        quantizer.in_order(at, at - start, count, out + at);
        if (moved) move_by_128(reinterpret_cast<uint8_t*>(out) + at, count);
      });
    }
  });
  return q;
}

namespace {

std::tuple<at::Tensor, at::Tensor> quantize_x(const at::Tensor& x, bool allow_unsigned) {
  check_float(x, "x");
  check_spatial_rank(x, "x");
  const auto quantized = quantize_x_cpu(x, allow_unsigned);
  at::Tensor qparams = at::empty({2}, x.options().dtype(at::kFloat));
  float* values = qparams.mutable_data_ptr<float>();
  values[0] = quantized.step;
  values[1] = static_cast<float>(quantized.zero_point);
  return {quantized.q, qparams};
}

at::Tensor quantize_x_with(const at::Tensor& x, const at::Tensor& qparams) {
  check_float(x, "x");
  check_spatial_rank(x, "x");
  check_dtype(qparams, at::kFloat, "qparams");
  check_size(qparams, {2}, "qparams");
  const at::Tensor dense = qparams.contiguous();
  const float* values = dense.const_data_ptr<float>();
  const int32_t zero_point = checked_zero_point(values[1]);
  const float levels = zero_point == 0 ? 255.0f : 127.0f;
  return quantize_x_cpu(x, ActivationGrid{values[0] * levels, levels, zero_point}).q;
}

at::Tensor quantize_g(const at::Tensor& g, const at::Tensor& threshold,
                      const std::optional<at::Tensor>& seed) {
  check_float(g, "g");
  check_spatial_rank(g, "g");
  check_dtype(threshold, at::kFloat, "threshold");
  TORCH_CHECK_VALUE(threshold.dim() == 1 &&
                        (threshold.size(0) == 1 || threshold.size(0) == g.size(1)),
                    "threshold has size ", threshold.sizes(), "; expected [1] or [", g.size(1),
                    "]");
  check_seed(seed);
  return quantize_g_cpu(g, threshold, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) {
  m.impl("quantize_x", &quantize_x);
  m.impl("quantize_x_with", &quantize_x_with);
  m.impl("quantize_g", &quantize_g);
}

}  // namespace daq_mm::cpu
