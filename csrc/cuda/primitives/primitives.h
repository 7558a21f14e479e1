// All that a kernel may use of the machine: indices, checked memory, barriers, warp-wide
// operations, tensor-core products, asynchronous copies, rounding. Kernels include this file only.
//
// Two implementations: hardware.h (nvcc: CUDA and inline PTX) and emulated.h (any C++ compiler with
// DAQ_MM_EMULATED defined: the threads of a block run one by one on the CPU, and every access,
// barrier and race is checked). README.md one folder up says how to write a kernel on them.
// warpgroup.h, which includes this one, adds what compute capability 9.0 alone has.
#pragma once

#include "cuda/primitives/types.h"

#ifdef DAQ_MM_EMULATED
#include "cuda/primitives/emulated.h"
#else
#include "cuda/primitives/hardware.h"
#endif

#include "cuda/primitives/rounding.h"
#include "cuda/primitives/warp.h"
