// What the op files (ops_*.cpp) call of the kernel files (*.cu): plain pointers into device memory,
// no PyTorch. Every function queues work on the stream and returns; none waits for the device.
//
// Activations and gradients are (n, c, spatial) dense in one of two memory orders: `last`, that is
// (n, spatial, c), or channels-first. Their 8-bit forms are always `last`.
#pragma once

#include <cstdint>

#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

enum class FloatType { float32, bfloat16, float16 };

// `count` float values of device memory.
struct FloatData {
  const void* data = nullptr;
  int64_t count = 0;
  FloatType type = FloatType::float32;
};

// An activation or gradient.
struct FloatImage {
  FloatData values;
  int64_t n = 0;
  int64_t c = 0;
  int64_t spatial = 0;
  bool last = true;

  int64_t rows() const { return n * spatial; }  // values a channel
};

// A weight: (co, ci, taps), or (co, taps, ci) if `last`; ci a group.
struct FloatWeight {
  FloatData values;
  int64_t co = 0;
  int64_t ci = 0;
  int64_t taps = 0;
  bool last = false;
};

// ---- quantize.cu ----

// Words of device memory that quantize_x and quantize_w take for extremes: bits of the largest
// magnitude, and the largest bits.
constexpr int64_t kExtremes = 2;

void find_extremes(const FloatData& x, uint32_t* extremes, Stream stream);

// q uint8 (count); qparams float (2).
void quantize_x(const FloatImage& x, bool allow_unsigned, uint32_t* extremes, uint8_t* q,
                float* qparams, Stream stream);

// The second half of quantize_x: the extremes are known.
void quantize_by_extremes(const FloatImage& x, bool allow_unsigned, const uint32_t* extremes,
                          uint8_t* q, float* qparams, Stream stream);

// The grid alone.
void extremes_to_qparams(const uint32_t* extremes, bool allow_unsigned, float* qparams,
                         Stream stream);

// q uint8 (count) on a grid that is known: qparams float (2).
void quantize_x_with(const FloatImage& x, const float* qparams, uint8_t* q, Stream stream);

// q int8 (count); threshold float (thresholds), 1 or c of them; seed null rounds to nearest.
void quantize_g(const FloatImage& g, const float* threshold, int64_t thresholds,
                const int64_t* seed, int8_t* q, Stream stream);

// ---- quantize_w.cu ----

// q int8 (co, ci, taps); step float (1).
void quantize_w(const FloatWeight& w, uint32_t* extremes, int8_t* q, float* step, Stream stream);

// q as above; threshold float (co); step float (ci * groups); maxima: words of device memory
// (ci * groups).
void quantize_w_folded(const FloatWeight& w, const float* threshold, int64_t groups,
                       uint32_t* maxima, int8_t* q, float* step, Stream stream);

// steps float (count): threshold / 127, times the one w_step if not null; `thresholds` are 1 or
// count.
void multiply_steps(const float* threshold, int64_t thresholds, const float* w_step, int64_t count,
                    float* steps, Stream stream);

// ---- thresholds.cu ----

// The rules by which thresholds move; see daq_mm/ops/thresholds.py.
struct ThresholdRules {
  bool mcs = false;
  float decay = 0;
  float gain = 0;
  bool cap = false;
  float gaussian_above = 0;
};

// A layer's state: c + 1 thresholds and tail probabilities, and the gradients seen.
struct ThresholdState {
  float* threshold = nullptr;
  float* tail_probability = nullptr;
  int64_t* iteration = nullptr;
};

// Bytes of device memory that update_thresholds takes.
int64_t update_thresholds_workspace(const FloatImage& g, bool mcs);

// used float (c + 1): the thresholds to quantize g with; the state moves on.
void update_thresholds(const FloatImage& g, const ThresholdRules& rules, int64_t interval,
                       const ThresholdState& state, void* workspace, float* used, Stream stream);

// The same where the maxima, float (c + 1), are known and the tails are not due.
void move_thresholds(const float* maximum, int64_t c, const ThresholdRules& rules,
                     const ThresholdState& state, float* used, Stream stream);

// sums float (c): sum of each channel; bytes of device memory that it takes.
int64_t channel_sums_workspace(const FloatImage& g);
void channel_sums(const FloatImage& g, void* workspace, float* sums, Stream stream);

// sums double (entries) of partials double (entries, parts), in a fixed order.
void combine_parts(const double* partials, int64_t entries, int64_t parts, double* sums,
                   Stream stream);

}  // namespace daq_mm::cuda
