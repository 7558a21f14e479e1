// glue.h with AVX512.
#if defined(__x86_64__)

// GCC's own _mm512_undefined_ps() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/float_loops.h"
#include "cpu/float_types.h"
#include "cpu/glue.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")

#include "cpu/vectors_avx512.h"

#include "cpu/glue_body.h"

namespace daq_mm::cpu {

const GlueLoops& glue_loops_avx512() { return kGlueLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
