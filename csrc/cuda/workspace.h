// Pieces of the workspace of a product, and the sizes that plans and launches must agree on.
#pragma once

#include "cuda/conv_kernels.h"
#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

class Workspace {
 public:
  Workspace(void* data, int64_t bytes) : data_(static_cast<uint8_t*>(data)), bytes_(bytes) {}

  template <typename T>
  Global<T> at(int64_t byte, int64_t count) const {
    if (byte + count * static_cast<int64_t>(sizeof(T)) > bytes_) {
      throw std::logic_error("a plan's workspace is too small");
    }
    return Global<T>(reinterpret_cast<T*>(data_ + byte), count);
  }
  void* place(int64_t byte) const { return data_ + byte; }

 private:
  uint8_t* data_;
  int64_t bytes_;
};

// columns: values of a row of results; block: those of a group.
inline Results make_results(void* data, ResultType type, int64_t values, int64_t columns,
                            int64_t block) {
  const int size = result_bytes(type);
  Results results;
  results.bytes = Global<uint8_t>(static_cast<uint8_t*>(data), values * size);
  results.type = type;
  results.aligned = results.bytes.is_aligned(16) && columns * size % 16 == 0 &&
                    block * size % 16 == 0;
  return results;
}

}  // namespace daq_mm::cuda
