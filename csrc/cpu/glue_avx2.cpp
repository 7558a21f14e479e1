// glue.h with AVX2, and F16C, which every processor with AVX2 has.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/float_loops.h"
#include "cpu/float_types.h"
#include "cpu/glue.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#include "cpu/vectors_avx2.h"

#include "cpu/glue_body.h"

namespace daq_mm::cpu {

const GlueLoops& glue_loops_avx2() { return kGlueLoops; }

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
