// float_loops.h with the instructions that every processor of the platform has.

#include <c10/util/Half.h>

#include "cpu/float_loops.h"
#include "cpu/float_types.h"
#include "cpu/vectors_scalar.h"

namespace daq_mm::cpu {
namespace {

void from_half(const uint16_t* v, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = c10::detail::fp16_ieee_to_fp32_value(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_scalar() { return kLoops; }

}  // namespace daq_mm::cpu
