// Names of the float dtypes of tensors, to choose functions by.
#pragma once

#include <cstdint>

namespace daq_mm::cpu {

struct Float32 {
  static constexpr int64_t kSize = 4;
};
struct BFloat16 {
  static constexpr int64_t kSize = 2;
};
struct Half {
  static constexpr int64_t kSize = 2;
};

}  // namespace daq_mm::cpu
