// float_loops.h with AVX512.
#if defined(__x86_64__)

// GCC's own _mm512_undefined_ps() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/float_loops.h"
#include "cpu/float_types.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")

#include "cpu/vectors_avx512.h"

namespace daq_mm::cpu {
namespace {

void from_half(const uint16_t* v, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(halves));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(v[i]);
}

}  // namespace
}  // namespace daq_mm::cpu

#include "cpu/float_loops_body.h"

namespace daq_mm::cpu {

const FloatLoops& float_loops_avx512() { return kLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
