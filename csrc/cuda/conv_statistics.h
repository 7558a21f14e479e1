// Statistics of a channels-last result by channel.
#pragma once

#include "cuda/conv_kernels.h"
#include "cuda/conv_result.h"

namespace daq_mm::cuda {

// partial float32 [row][4][channels] (at the start of the scratch memory) -> statistics float64
// (4, channels), in a fixed order.
void reduce_statistics(void* scratch, int64_t rows, int64_t channels, double* statistics,
                       Stream stream);

// The same of [row][2][channels], both of them sums.
void reduce_two_sums(void* scratch, int64_t rows, int64_t channels, double* sums, Stream stream);

// The same from stored results of `positions` x `channels`, by a pass over them.
void pass_statistics(const Results& results, int64_t positions, int64_t channels, void* scratch,
                     double* statistics, Stream stream);

}  // namespace daq_mm::cuda
