// Tensor maps: what the copy engine takes, and, on the hardware, the driver's encoding of it. The
// driver's functions are looked up at run time, so that the module loads where there is no driver.

#include "cuda/primitives/tensor_map.h"

#include <stdexcept>
#include <string>

namespace daq_mm::cuda {
namespace {

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
bool is_span(int span) { return span == 64 || span == 128; }
constexpr int64_t kMostStride = int64_t{1} << 40;
constexpr int64_t kMostSize = int64_t{1} << 31;  // coordinates are int32

}  // namespace

const char* refusal(const MatrixMapping& m) {
  if (!is_aligned(m.data)) return "an address that is no multiple of 16";
  if (m.columns % 16 != 0) return "rows whose bytes are no multiple of 16";
  if (m.rows < 1 || m.columns < 1 || m.rows > kMostSize || m.columns > kMostSize) {
    return "rows or columns outside of 1..2**31";
  }
  if (!is_span(m.span)) return "a span other than 64 or 128";
  if (m.box_rows < 1 || m.box_rows > 256) return "a box of rows outside of 1..256";
  return nullptr;
}

const char* refusal(const WalkMapping& m) {
  if (!is_aligned(m.data)) return "an address that is no multiple of 16";
  if (m.channels < 1 || m.channels % 16 != 0) return "channels that are no multiple of 16";
  if (m.axes != 2 && m.axes != 3) return "a number of axes other than 2 or 3";
  if (!is_span(m.span)) return "a span other than 64 or 128";
  if (m.pixels < 1 || m.pixels > 1024) return "pixels outside of 1..1024";
  // Corners and offsets share the bits of one word.
  const int most = m.axes == 2 ? 128 : 16;
  int64_t stride = m.channels;
  for (int a = 2; a >= 3 - m.axes; --a) {
    if (m.lower[a] < -most || m.lower[a] >= most || m.upper[a] < -most || m.upper[a] >= most) {
      return "corners that do not fit";
    }
    // The largest that their bits hold is left out, as CUTLASS leaves it out.
    if (m.most_offset[a] < 0 || m.most_offset[a] >= 2 * most - 1) return "offsets that do not fit";
    if (m.step[a] < 1 || m.step[a] > 8) return "a step outside of 1..8";
    if (m.size[a] + m.upper[a] <= m.lower[a]) return "an empty walk";
    stride *= m.size[a];
  }
  if (m.images < 1 || m.images > kMostSize) return "images outside of 1..2**31";
  if (stride >= kMostStride) return "an image of 2**40 bytes or more";
  return nullptr;
}

namespace {

template <typename mapping_t>
void check(const mapping_t& mapping) {
  if (const char* reason = refusal(mapping); reason != nullptr) {
    throw std::runtime_error(std::string("a tensor map was refused: ") + reason);
  }
}

}  // namespace
}  // namespace daq_mm::cuda

#ifdef DAQ_MM_EMULATED

namespace daq_mm::cuda {

TensorMap make_tensor_map(const MatrixMapping& mapping) {
  check(mapping);
  TensorMap map;
  map.matrix = mapping;
  return map;
}

TensorMap make_tensor_map(const WalkMapping& mapping) {
  check(mapping);
  TensorMap map;
  map.is_walk = true;
  map.walk = mapping;
  return map;
}

}  // namespace daq_mm::cuda

#else

#include <c10/cuda/CUDAException.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

namespace daq_mm::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) &&
              alignof(TensorMap) >= alignof(CUtensorMap));

// A function of the driver, by its name and the CUDA version whose signature is meant.
template <typename function_t>
function_t driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  C10_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
#else
  C10_CUDA_CHECK(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("the CUDA driver has no ") + name +
                             "; compute capability 9.0 needs a driver of CUDA 12");
  }
  return reinterpret_cast<function_t>(function);
}

void check_encoded(CUresult result, const char* name) {
  if (result == CUDA_SUCCESS) return;
  throw std::runtime_error(std::string(name) + " failed with CUresult " +
                           std::to_string(static_cast<int>(result)));
}

CUtensorMapSwizzle swizzle_of(int span) {
  return span == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
}

}  // namespace

TensorMap make_tensor_map(const MatrixMapping& m) {
  check(m);
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(m.columns),
                               static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.columns)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(m.span), static_cast<cuuint32_t>(m.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  TensorMap map;
  check_encoded(encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
                       const_cast<void*>(m.data), sizes, strides, box, steps,
                       CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(m.span),
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                "cuTensorMapEncodeTiled");
  return map;
}

TensorMap make_tensor_map(const WalkMapping& m) {
  check(m);
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  // The driver's axes go from the channels outwards: C, W, H, (D,) N; corners W, H, (D).
  const int rank = m.axes + 2;
  cuuint64_t sizes[5] = {static_cast<cuuint64_t>(m.channels)};
  cuuint64_t strides[4] = {};
  cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  int lower[3] = {}, upper[3] = {};
  auto stride = static_cast<cuuint64_t>(m.channels);
  for (int i = 0; i < m.axes; ++i) {
    const int a = 2 - i;
    sizes[1 + i] = static_cast<cuuint64_t>(m.size[a]);
    strides[i] = stride;
    stride *= sizes[1 + i];
    steps[1 + i] = static_cast<cuuint32_t>(m.step[a]);
    lower[i] = m.lower[a];
    upper[i] = m.upper[a];
  }
  sizes[rank - 1] = static_cast<cuuint64_t>(m.images);
  strides[rank - 2] = stride;
  TensorMap map;
  check_encoded(encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8,
                       static_cast<cuuint32_t>(rank), const_cast<void*>(m.data), sizes, strides,
                       lower, upper, static_cast<cuuint32_t>(m.span),
                       static_cast<cuuint32_t>(m.pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                       swizzle_of(m.span), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                "cuTensorMapEncodeIm2col");
  return map;
}

}  // namespace daq_mm::cuda

#endif
