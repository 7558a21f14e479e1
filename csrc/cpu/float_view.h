// A float tensor (N, C, *spatial) as the elementwise CPU ops see it: one dense block of memory in
// one of two orders, values converted to float32 piece by piece. Used by daq_mm::quantize_x,
// quantize_w, quantize_w_folded, quantize_g, update_thresholds and conv_backward.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "checks.h"
#include "cpu/float_loops.h"

namespace daq_mm::cpu {

constexpr int64_t kPiece = 1024;  // values converted at a time: 4 KB of L1

// Converts pieces of a tensor's values; float32 is read where it lies.
class FloatReader {
 public:
  FloatReader(const at::Tensor& t, const FloatLoops& loops)
      : data_(t.const_data_ptr()), dtype_(t.scalar_type()), loops_(loops) {}

  // Values [at, at + count), count <= kPiece; `buffer` holds kPiece values and may be the result.
  const float* read(int64_t at, int64_t count, float* buffer) const {
    if (dtype_ == at::kFloat) return static_cast<const float*>(data_) + at;
    const uint16_t* words = static_cast<const uint16_t*>(data_) + at;
    (dtype_ == at::kBFloat16 ? loops_.from_bfloat16 : loops_.from_half)(words, count, buffer);
    return buffer;
  }

  // Have the cache lines of values [at, at + count) fetched; they need not exist.
  void prefetch(int64_t at, int64_t count) const {
#if defined(__GNUC__)
    const int64_t size = dtype_ == at::kFloat ? 4 : 2;
    const auto* first = static_cast<const char*>(data_) + at * size;
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(first + i, 0, 2);
#endif
  }

 private:
  const void* data_;
  at::ScalarType dtype_;
  const FloatLoops& loops_;
};

// An activation or gradient, channels-last or contiguous; other layouts are copied once.
struct FloatView {
  at::Tensor tensor;
  bool last;         // memory order (n, spatial, c); otherwise (n, c, spatial)
  int64_t n, c, spatial;

  explicit FloatView(const at::Tensor& t) : n(t.size(0)), c(t.size(1)), spatial(1) {
    const auto format = channels_last_format(t.dim() - 2);
    for (int64_t axis = 2; axis < t.dim(); ++axis) spatial *= t.size(axis);
    last = t.is_contiguous(format) || !t.is_contiguous();
    tensor = last ? t.contiguous(format) : t;
  }
  int64_t numel() const { return n * c * spatial; }
};

// Calls f(at, count) for pieces of [begin, end) of at most kPiece values.
template <typename F>
inline void for_pieces(int64_t begin, int64_t end, const F& f) {
  for (int64_t at = begin; at < end; at += kPiece) {
    f(at, end - at < kPiece ? end - at : kPiece);
  }
}

}  // namespace daq_mm::cpu
