// primitives.h and what compute capability 9.0 alone has: arrival objects, copies by the copy
// engine, products of a warpgroup. hardware_warpgroup.h says what each does.
#pragma once

#include "cuda/primitives/primitives.h"

#ifdef DAQ_MM_EMULATED
#include "cuda/primitives/emulated_warpgroup.h"
#else
#include "cuda/primitives/hardware_warpgroup.h"
#endif
