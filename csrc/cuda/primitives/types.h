// Plain types that both implementations of the primitives and the host code around them share.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef DAQ_MM_EMULATED
namespace daq_mm::cuda {
using Stream = void*;  // the emulator runs a kernel to its end before launch() returns
}
#else
#include <cuda_runtime_api.h>
namespace daq_mm::cuda {
using Stream = cudaStream_t;
}
#endif

namespace daq_mm::cuda {

// Blocks of a launch, each axis at least 1.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

// Raises RuntimeError for a grid that no device takes.
inline void check_grid(const Grid& grid) {
  const bool fits = grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 &&
                    grid.z >= 1 && grid.z <= 65535;
  if (fits) return;
  throw std::runtime_error("launch refused: a grid of " + std::to_string(grid.x) + " x " +
                           std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks");
}

// What one 16-byte access moves.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};

struct alignas(8) Bytes8 {
  uint32_t word[2];
};

constexpr int kWarp = 32;

}  // namespace daq_mm::cuda
