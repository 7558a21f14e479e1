// From int32 partial sums of a split contraction to results.
#pragma once

#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"

namespace daq_mm::cuda {

struct FinishArguments {
  Global<const int32_t> partial;  // [split][row][column]
  int64_t splits;
  int64_t rows;
  int64_t columns;
  Global<const int32_t> sums;     // times the zero point, off the result: [sum_splits][of]; or null
  int64_t sum_splits;
  bool by_row;                    // steps, bias and sums belong to rows; else to columns
  Global<const float> qparams;    // (step, zero point), or null: 1, 0
  Global<const float> step;       // times qparams' step; by row or column if `many_steps`
  bool many_steps;
  Global<const float> bias;       // or null
  Results results;
  int64_t taps;                   // > 0: column tap * (columns / taps) + channel goes to
                                  // channel * taps + tap
};

void finish_sums(const FinishArguments& arguments, Stream stream);

}  // namespace daq_mm::cuda
