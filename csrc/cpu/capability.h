// Which CPU instruction set the kernels use: the best the processor has, or a forced one.
#pragma once

#include <string>
#include <vector>

namespace daq_mm::cpu {

// Ordered: a processor that has one has all before it.
enum class Capability { kScalar = 0, kAVX2 = 1, kAVX512VNNI = 2 };

// The one in use; a relaxed atomic read, cheap enough to be asked in every op.
Capability capability();

// Whether the processor rounds to bfloat16 by itself (AVX512-BF16). Its instruction takes
// subnormal numbers for zero, so kernels use it only where none can occur.
bool has_native_bfloat16();

// Whether the processor by itself fetches lines that strided stores will write, as Intel's do: to
// fetch them again costs time there, and saves it on Zen.
bool foresees_strided_stores();

// "scalar", "avx2" or "avx512_vnni".
std::string capability_name();

// Names this processor can run, best first.
std::vector<std::string> available_capabilities();

// Force one by name, or return to the best with "". Unknown names raise (c10::ValueError).
void set_capability(const std::string& name);

}  // namespace daq_mm::cpu
