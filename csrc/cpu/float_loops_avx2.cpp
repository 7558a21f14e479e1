// float_loops.h with AVX2, and F16C, which every processor with AVX2 has.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/float_loops.h"
#include "cpu/float_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#include "cpu/vectors_avx2.h"

namespace daq_mm::cpu {
namespace {

void from_half(const uint16_t* v, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_avx2() { return kLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
