// add_bytes of byte_sums.h, and daq_mm::byte_sums: the sum of each column of an int8 or uint8 matrix
// (R, M), as int32 (M,). Narrow matrices are read as wider ones, of several rows side by side.

#include "cpu/byte_sums.h"

#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/capability.h"
#include "cpu/op_checks.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kRows = 128;         // rows that 16 bits hold: 128 * 255 < 2^15
constexpr int64_t kPartBytes = 65536;  // bytes of a part at least
constexpr int64_t kMaxParts = 64;      // parts along the rows
constexpr int64_t kSideBySide = 1024;  // width of a narrow matrix's rows side by side

template <typename T>
[[gnu::always_inline]] inline void add(const T* v, const int64_t* offsets, int64_t stride,
                                       int64_t rows, int64_t count, int32_t* __restrict sums) {
  alignas(64) int16_t partial[kSumColumns];
  for (int64_t row = 0; row < rows; row += kRows) {
    std::fill_n(partial, count, int16_t{0});
    const int64_t end = std::min(row + kRows, rows);
    for (int64_t r = row; r < end; ++r) {
      const T* __restrict line = v + (offsets ? offsets[r] : r * stride);
      for (int64_t i = 0; i < count; ++i) partial[i] = static_cast<int16_t>(partial[i] + line[i]);
    }
    for (int64_t i = 0; i < count; ++i) sums[i] += partial[i];
  }
}

template <typename T>
void add_scalar(const T* v, const int64_t* offsets, int64_t stride, int64_t rows, int64_t count,
                int32_t* sums) {
  add(v, offsets, stride, rows, count, sums);
}

#if defined(__x86_64__)
template <typename T>
[[gnu::target("avx2")]] void add_avx2(const T* v, const int64_t* offsets, int64_t stride,
                                      int64_t rows, int64_t count, int32_t* sums) {
  add(v, offsets, stride, rows, count, sums);
}

template <typename T>
[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")]] void add_avx512(
    const T* v, const int64_t* offsets, int64_t stride, int64_t rows, int64_t count,
    int32_t* sums) {
  add(v, offsets, stride, rows, count, sums);
}
#endif

template <typename T>
void add_by_capability(const T* v, const int64_t* offsets, int64_t stride, int64_t rows,
                       int64_t count, int32_t* sums) {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAVX512VNNI:
      return add_avx512(v, offsets, stride, rows, count, sums);
    case Capability::kAVX2:
      return add_avx2(v, offsets, stride, rows, count, sums);
    default:
      break;
  }
#endif
  add_scalar(v, offsets, stride, rows, count, sums);
}

// Columns of `v` (rows, width) summed into `sums` (width,), which starts at zero.
template <typename T>
void sum_columns(const T* v, int64_t rows, int64_t width, int32_t* sums) {
  const int64_t blocks = (width + kSumColumns - 1) / kSumColumns;
  // The fewer blocks, the more parts along the rows; each part has sums of its own.
  const int64_t parts = std::clamp(rows * std::min(width, kSumColumns) / kPartBytes, int64_t{1},
                                   kMaxParts / blocks + 1);
  std::vector<int32_t> partial(parts > 1 ? parts * width : 0);
  at::parallel_for(0, parts * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t part = job / blocks, column = job % blocks * kSumColumns;
      const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
      int32_t* out = parts > 1 ? partial.data() + part * width : sums;
      add_bytes(v + first * width + column, nullptr, width, last - first,
                std::min(kSumColumns, width - column), out + column);
    }
  });
  for (int64_t part = 0; part < parts && parts > 1; ++part) {
    for (int64_t i = 0; i < width; ++i) sums[i] += partial[part * width + i];
  }
}

template <typename T>
void byte_sums_of(const T* v, int64_t rows, int64_t width, int32_t* out) {
  const int64_t side = std::clamp(kSideBySide / width, int64_t{1}, rows);
  const int64_t whole = rows / side;
  std::vector<int32_t> sums(side * width);
  sum_columns(v, whole, side * width, sums.data());
  for (int64_t i = 0; i < width; ++i) {
    int32_t sum = 0;
    for (int64_t row = 0; row < side; ++row) sum += sums[row * width + i];
    for (int64_t row = whole * side; row < rows; ++row) sum += v[row * width + i];
    out[i] = sum;
  }
}

at::Tensor byte_sums(const at::Tensor& q) {
  check_device(q, at::kCPU, "q");
  check_byte_matrix(q);
  const int64_t rows = q.size(0), width = q.size(1);
  at::Tensor out = at::zeros({width}, q.options().dtype(at::kInt));
  if (q.numel() == 0) return out;
  int32_t* sums = out.mutable_data_ptr<int32_t>();
  if (q.scalar_type() == at::kChar) {
    byte_sums_of(q.const_data_ptr<int8_t>(), rows, width, sums);
  } else {
    byte_sums_of(q.const_data_ptr<uint8_t>(), rows, width, sums);
  }
  return out;
}

}  // namespace

void add_bytes(const int8_t* v, const int64_t* offsets, int64_t stride, int64_t rows, int64_t count,
               int32_t* sums) {
  add_by_capability(v, offsets, stride, rows, count, sums);
}

void add_bytes(const uint8_t* v, const int64_t* offsets, int64_t stride, int64_t rows,
               int64_t count, int32_t* sums) {
  add_by_capability(v, offsets, stride, rows, count, sums);
}

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("byte_sums", &byte_sums); }

}  // namespace daq_mm::cpu
