// glue.h with the instructions that every processor of the platform has.

#include "cpu/float_loops.h"
#include "cpu/float_types.h"
#include "cpu/glue.h"
#include "cpu/vectors_scalar.h"

#include "cpu/glue_body.h"

namespace daq_mm::cpu {

const GlueLoops& glue_loops_scalar() { return kGlueLoops; }

}  // namespace daq_mm::cpu
