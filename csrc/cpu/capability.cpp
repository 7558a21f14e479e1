// The run-time test of the processor and the forced choice; see capability.h.

#include "cpu/capability.h"

#include <atomic>

#include <c10/util/Exception.h>

namespace daq_mm::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512_vnni"};

Capability best_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")) {
    return Capability::kAVX512VNNI;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Capability::kAVX2;
  }
#endif
  return Capability::kScalar;
}

bool native_bfloat16() {
#if defined(__x86_64__)
  return best_capability() == Capability::kAVX512VNNI && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

const bool kNativeBFloat16 = native_bfloat16();
const bool kIsIntel = is_intel();
const Capability kBest = best_capability();
std::atomic<Capability> current{kBest};

}  // namespace

Capability capability() { return current.load(std::memory_order_relaxed); }

bool has_native_bfloat16() { return kNativeBFloat16; }

bool foresees_strided_stores() { return kIsIntel; }

std::string capability_name() { return kNames[static_cast<int>(capability())]; }

std::vector<std::string> available_capabilities() {
  std::vector<std::string> names;
  for (int i = static_cast<int>(kBest); i >= 0; --i) names.emplace_back(kNames[i]);
  return names;
}

void set_capability(const std::string& name) {
  if (name.empty()) {
    current = kBest;
    return;
  }
  for (int i = 0; i <= static_cast<int>(kBest); ++i) {
    if (name == kNames[i]) {
      current = static_cast<Capability>(i);
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "CPU capability '", name, "' is not available on this processor");
}

}  // namespace daq_mm::cpu
