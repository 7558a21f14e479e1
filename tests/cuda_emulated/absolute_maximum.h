// The absolute maximum of float32 values: the smallest kernel on the primitives, to start from.
#pragma once

#include <cstdint>

#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// *result_bits <- bits of max |x[i]|, 0 if there is none; NaN above Inf above numbers.
// x, result_bits: device memory, `count` values and one.
void absolute_maximum(const float* x, int64_t count, uint32_t* result_bits, Stream stream);

}  // namespace daq_mm::cuda
