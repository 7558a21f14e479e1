// What the glue's kernels share: a thread has one column of kVector channels, whatever their
// number, so that a byte of the mask is one thread's. Where all addresses allow it, a column is
// read and written by 16-byte accesses; else, and in a last column that is not full, value by value.
#pragma once

#include "cuda/channel_columns.h"
#include "cuda/glue.h"
#include "cuda/rounding_laws.h"

namespace daq_mm::cuda {

constexpr int64_t kGlueParts = 1024;

inline Columns glue_columns(const GlueSize& size) {
  return {size.rows, size.channels, true, kGlueParts};
}

// Whether columns can be read by vectors at all these addresses.
template <typename... P>
bool all_aligned(const GlueSize& size, const P*... pointers) {
  return size.channels % kVector == 0 &&
         (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

// A column's place in memory.
struct ColumnPlace {
  int64_t channel;  // the first
  int count;        // of channels, at most kVector; 0 for a thread that idles
  bool vectors;

  DAQ_DEVICE ColumnPlace(const ColumnWalk& walk, bool all_vectors)
      : channel(walk.channel<kVector>()), count(0), vectors(all_vectors) {
    const int64_t rest = walk.channels - channel;
    if (rest > 0) count = rest < kVector ? static_cast<int>(rest) : kVector;
  }

  template <FloatType type>
  DAQ_DEVICE void load(const FloatSource<type>& source, int64_t i, float (&v)[kVector]) const {
    if (vectors) {
      load_values<type, kVector>(source, i, v);
      return;
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = k < count ? from_word<type>(source.load(i + k)) : 0.0f;
  }
  template <FloatType type>
  DAQ_DEVICE void store(const FloatTarget<type>& target, int64_t i,
                        const float (&v)[kVector]) const {
    if (vectors) {
      store_values<type, kVector>(target, i, v);
      return;
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < count) target.store(i + k, to_word<type>(v[k]));
    }
  }
  DAQ_DEVICE void load_codes(const Global<const uint8_t>& codes, int64_t i,
                             float (&v)[kVector]) const {
    Bytes8 packed{{0, 0}};
    if (vectors) packed = codes.load_as<Bytes8>(i);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      uint32_t code = packed.word[k / 4] >> (8 * (k % 4)) & 0xffu;
      if (!vectors && k < count) code = codes.load(i + k);
      v[k] = static_cast<float>(code);
    }
  }
  DAQ_DEVICE void store_codes(const Global<uint8_t>& target, int64_t i,
                              const uint32_t (&b)[kVector]) const {
    if (vectors) {
      target.store_as(i, pack_bytes(b));
      return;
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < count) target.store(i + k, static_cast<uint8_t>(b[k]));
    }
  }
  // Values of a vector with an entry for each channel.
  DAQ_DEVICE void load_channels(const Global<const float>& of_channel, int64_t offset,
                                float (&v)[kVector]) const {
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = k < count ? of_channel.load(offset + channel + k) : 0;
  }
};

// A sum of many floats: kChunk values in float32, the chunks in double.
struct ChunkedSum {
  static constexpr int kChunk = 8;
  float chunk = 0;
  double total = 0;

  DAQ_DEVICE void flush() {
    total += chunk;
    chunk = 0;
  }
};

}  // namespace daq_mm::cuda
