// The processor's register-only INT8 peak, measured: the yardstick of tools/bench_ops.py.
#pragma once

namespace daq_mm::cpu {

// Integer operations a second, in units of 1e9 (a multiply-add counts as two), that PyTorch's
// threads reach together on operands in registers, with the instruction set in use: avx512_vnni
// multiplies by vpdpbusd, avx2 by vpmaddwd and vpaddd; scalar is portable C++ on a buffer in the L1
// cache, as the compiler vectorizes it. Runs for about `seconds` (0.001 to 10; c10::ValueError).
double peak_gops(double seconds);

}  // namespace daq_mm::cpu
