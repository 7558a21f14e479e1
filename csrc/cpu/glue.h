// Loops over the pixels of dense channels-last activations and gradients, for the ops between the
// integer convolutions (daq_mm/ops/glue.py): one table for each instruction set.
//
//   forward    v = y * scale + shift [+ residual], rounded to D; out = act(v)
//              q = round(clamp(out * inverse)) + zero point; codes = round(clamp((y - low) * inv))
//   backward   gz = mask ? g [+ g2] : 0;  y_hat = low + code * step, or y
//              sums of gz and gz * (y_hat - mean) * invstd;  dy = a * gz + b * y_hat + c
//
// Each float operation is rounded on its own. D is the tensors' dtype. Arrays of one float a channel
// are padded by zeros to whole vectors (glue_width), a NaN in them is the plain one. Null pointers
// are results not wanted and operands not given.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "cpu/capability.h"

namespace daq_mm::cpu {

// Channels rounded up to whole vectors of any instruction set.
inline int64_t glue_width(int64_t channels) { return (channels + 15) / 16 * 16; }
inline int64_t mask_bytes(int64_t channels) { return (channels + 7) / 8; }

struct NormActTask {
  int64_t channels;
  const void* y;
  const void* residual;
  const float* scale;
  const float* shift;
  int64_t act;           // 0 none, 1 ReLU, 2 ReLU6
  const float* low;      // of the grid
  const float* inverse;  // grid points per unit
  void* out;
  uint8_t* q;  // only without residual: else the extremes must be known first
  float q_inverse;
  float q_levels;
  int32_t zero_point;
  uint8_t* codes;
  uint8_t* mask;
};

// How y comes: not at all, in D, or as codes.
enum class YKind { kNone, kFloat, kCodes };

struct GradientTask {
  int64_t channels;
  int64_t first_channel;  // of those that `reduce` is about, a multiple of 16
  int64_t last_channel;   // behind them: all channels, or a multiple of 16
  const void* g;
  const void* g2;
  const uint8_t* mask;
  const void* y;
  const float* low;   // the grid of codes
  const float* step;
  const float* mean;  // for the sums
  const float* invstd;
  const float* a;  // for dy
  const float* b;
  const float* c;
  void* out;  // gz or dy
  int8_t* q;  // of dy
  const float* q_inverse;  // of each channel
  bool random;
  uint32_t seed;
};

// Accumulators of a range of pixels, glue_width(C) entries each.
struct StatsSums {
  double* sum;
  double* squares;
  float* least;  // NaN are not seen here; they make `squares` NaN
  float* most;
};

struct GlueLoops {
  // Indexed by dtype (glue_dtype); pixels [first, last).
  void (*stats[3])(const void* y, int64_t channels, int64_t first, int64_t last,
                   const StatsSums& sums);
  // Without and with residual; extremes of out as in FloatLoops::extremes with one.
  void (*norm_act[3][2])(const NormActTask& task, int64_t first, int64_t last,
                         uint32_t* magnitude, uint32_t* raw);
  // Indexed by dtype and YKind. reduce writes gz to `out`; sums are those of gz, then of gz * x_hat.
  void (*reduce[3][3])(const GradientTask& task, int64_t first, int64_t last, double* sums);
  void (*apply[3][3])(const GradientTask& task, int64_t first, int64_t last);
  void (*maxima[3][3])(const GradientTask& task, int64_t first, int64_t last, uint32_t* magnitudes);
  void (*quantize[3][3])(const GradientTask& task, int64_t first, int64_t last);
};

const GlueLoops& glue_loops_scalar();
#if defined(__x86_64__)
const GlueLoops& glue_loops_avx2();
const GlueLoops& glue_loops_avx512();
#endif

inline const GlueLoops& glue_loops() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAVX512VNNI:
      return glue_loops_avx512();
    case Capability::kAVX2:
      return glue_loops_avx2();
    default:
      break;
  }
#endif
  return glue_loops_scalar();
}

inline int glue_dtype(at::ScalarType type) {
  return type == at::kFloat ? 0 : type == at::kBFloat16 ? 1 : 2;
}

}  // namespace daq_mm::cpu
