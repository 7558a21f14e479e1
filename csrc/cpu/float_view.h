// A float tensor (N, C, *spatial) as the elementwise CPU ops see it: one dense block of memory in
// one of two orders, values converted to float32 piece by piece. Used by daq_mm::quantize_x,
// quantize_w, quantize_w_folded, quantize_g, update_thresholds and conv_backward.
#pragma once

#include <algorithm>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "checks.h"
#include "cpu/float_loops.h"

namespace daq_mm::cpu {

constexpr int64_t kPiece = 1024;  // values converted at a time: 4 KB of L1

// Reads pieces of a tensor's values, of at most kPiece values each.
class FloatReader {
 public:
  FloatReader(const at::Tensor& t, const FloatLoops& loops)
      : data_(static_cast<const uint8_t*>(t.const_data_ptr())),
        dtype_(t.scalar_type()),
        size_(t.element_size()),
        loops_(loops),
        source_(dtype_ == at::kFloat      ? loops.float32
                : dtype_ == at::kBFloat16 ? loops.bfloat16
                                          : loops.half) {}

  // Values [at, at + count) as float32; `buffer` holds kPiece values and may be the result.
  const float* read(int64_t at, int64_t count, float* buffer) const {
    if (dtype_ == at::kFloat) return reinterpret_cast<const float*>(from(at));
    const auto* words = reinterpret_cast<const uint16_t*>(from(at));
    (dtype_ == at::kBFloat16 ? loops_.from_bfloat16 : loops_.from_half)(words, count, buffer);
    return buffer;
  }

  // The loops of the same names on values [at, at + count).
  void extremes(int64_t at, int64_t count, uint32_t* magnitude, uint32_t* raw) const {
    source_.extremes(from(at), count, magnitude, raw);
  }
  void maxima(int64_t at, int64_t count, uint32_t* magnitudes) const {
    source_.maxima(from(at), count, magnitudes);
  }
  void quantize(int64_t at, int64_t count, float inverse, float limit, int32_t offset,
                uint8_t* out) const {
    source_.quantize(from(at), inverse, limit, offset, count, out);
  }
  void quantize_each(int64_t at, int64_t count, const float* inverse, int8_t* out) const {
    source_.quantize_each(from(at), inverse, count, out);
  }

  // Have the cache lines of values [at, at + count) fetched; they need not exist.
  void prefetch(int64_t at, int64_t count) const {
#if defined(__GNUC__)
    for (int64_t i = 0; i < count * size_; i += 64) __builtin_prefetch(from(at) + i, 0, 2);
#endif
  }

 private:
  const uint8_t* from(int64_t at) const { return data_ + at * size_; }

  const uint8_t* data_;
  at::ScalarType dtype_;
  int64_t size_;
  const FloatLoops& loops_;
  const SourceLoops& source_;
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

// The same in blocks from the end, each from its beginning: for a second sweep, which then begins
// with what is still in the caches, and goes in the direction that the processor foresees.
template <typename F>
inline void for_pieces_backward(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t kBlock = 32 * kPiece;
  for (int64_t stop = end; stop > begin; stop -= kBlock) {
    for_pieces(std::max(stop - kBlock, begin), stop, f);
  }
}

}  // namespace daq_mm::cpu
