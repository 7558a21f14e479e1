// Launch functions of the fused glue between integer convolutions; see daq_mm/ops/glue.py for the
// formulas. Plain pointers into device memory; null where an operand is not there. Activations,
// gradients, codes are channels-last, `rows` pixels by `channels`; masks have (channels + 7) / 8
// bytes a pixel.
#pragma once

#include <cstdint>

#include "cuda/launches.h"
#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// A tensor's pixels by channels; `type` is the float type of all float tensors with pixels.
struct GlueSize {
  int64_t rows = 0;
  int64_t channels = 0;
  FloatType type = FloatType::float32;

  int64_t count() const { return rows * channels; }
  int64_t mask_bytes() const { return rows * ((channels + 7) / 8); }
};

enum class Activation : int { kNone = 0, kRelu = 1, kRelu6 = 2 };

// ---- glue_forward.cu ----

// stats float64 (4, channels) of y; with bytes of device memory that it takes.
int64_t stats_workspace(const GlueSize& size);
void stats_of(const GlueSize& size, const void* y, void* workspace, double* stats, Stream stream);

struct BatchNormStatistics {
  const double* stats;  // (4, channels)
  int64_t channels;
  double count;
  double momentum;
  double eps;
  void* running_mean;  // of running_type, or null
  FloatType running_mean_type;
  void* running_var;
  FloatType running_var_type;
  float* mean;
  float* invstd;
};
void batch_norm_statistics(const BatchNormStatistics& arguments, Stream stream);

struct BatchNormCoefficients {
  const double* sums;  // (2, channels), of norm_act_reduce
  int64_t channels;
  double count;
  FloatData weight;    // or null
  const float* mean;
  const float* invstd;
  float* coefficients;  // (3, channels)
};
void norm_backward_coefficients(const BatchNormCoefficients& arguments, Stream stream);

struct NormActForward {
  const void* y;
  const double* stats;  // (4, channels), for codes, and without residual
  FloatData weight;     // batch norm's, or null
  FloatData bias;
  const float* mean;    // (channels), or null: no norm
  const float* invstd;
  const void* residual;
  Activation act;
  bool allow_unsigned;
  uint32_t* extremes;   // kExtremes words of device memory
  void* out;            // or null; with q and a residual it must be there
  uint8_t* q;           // or null
  float* qparams;       // (2)
  uint8_t* codes;       // or null
  float* grid;          // (2, channels), with codes
  uint8_t* mask;        // with an activation
};
void norm_act_forward(const NormActForward& arguments, const GlueSize& size, Stream stream);

// ---- glue_backward.cu ----

// y as its codes (uint8, with a grid), in the float type (grid null), or null.
struct NormActReduce {
  const void* g;
  const void* g2;        // or null
  const uint8_t* mask;   // or null
  const void* y;
  const float* grid;     // (2, channels)
  const float* mean;     // (channels), or null
  const float* invstd;
  void* gz;              // or null; may be g
  double* sums;          // (2, channels)
};
int64_t norm_act_reduce_workspace(const GlueSize& size);
void norm_act_reduce(const NormActReduce& arguments, const GlueSize& size, void* workspace,
                     Stream stream);

struct NormBackward {
  const void* g;
  const uint8_t* mask;
  const void* y;
  const float* grid;
  const float* coefficients;  // (3, channels)
};
void norm_backward_apply(const NormBackward& arguments, const GlueSize& size, void* dy,
                         Stream stream);
// maxima float (channels + 1).
void norm_backward_maxima(const NormBackward& arguments, const GlueSize& size, float* maxima,
                          Stream stream);
void norm_backward_quantize(const NormBackward& arguments, const GlueSize& size,
                            const float* threshold, int64_t thresholds, const int64_t* seed,
                            int8_t* q, Stream stream);

// ---- glue_thresholds.cu ----

// update_thresholds of what norm_backward_apply would write.
int64_t norm_backward_thresholds_workspace(const GlueSize& size);
void norm_backward_thresholds(const NormBackward& arguments, const GlueSize& size,
                              const ThresholdRules& rules, int64_t interval,
                              const ThresholdState& state, void* workspace, float* used,
                              Stream stream);

}  // namespace daq_mm::cuda
