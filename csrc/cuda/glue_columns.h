// What the glue's kernels share: a thread has one column of kVector channels, whatever their
// number, so that a byte of the mask is one thread's. Where all addresses allow it (`vectors`), a
// column is read and written by 16-byte accesses; else, and in a last column that is not full, value
// by value. Values are loaded as words, ahead of their use (RowsAhead), and unpacked there.
#pragma once

#include <type_traits>

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

// Host: f(std::integral_constant<FloatType, type>, std::bool_constant<vectors>).
template <typename F>
void with_column_type(const GlueSize& size, bool vectors, const F& f) {
  with_float_type(size.type, [&](auto type) {
    if (vectors) {
      f(type, std::true_type());
    } else {
      f(type, std::false_type());
    }
  });
}

// A column's place in memory.
template <bool vectors>
struct ColumnPlace {
  int64_t channel;  // the first
  int count;        // of channels, at most kVector; 0 for a thread that idles

  DAQ_DEVICE explicit ColumnPlace(const ColumnWalk& walk)
      : channel(walk.channel<kVector>()), count(0) {
    const int64_t rest = walk.channels - channel;
    if (rest > 0) count = rest < kVector ? static_cast<int>(rest) : kVector;
  }

  // Whether a thread that does not idle has a k-th channel.
  DAQ_DEVICE bool has(int k) const { return vectors || k < count; }
  // A bit for each channel that it has.
  DAQ_DEVICE uint32_t bits() const { return vectors ? 0xffu : (1u << count) - 1; }
  // The column's byte of a mask, in a row whose i-th value is the column's first.
  DAQ_DEVICE int64_t of_mask(const ColumnWalk& walk, int64_t row, int64_t i) const {
    if constexpr (vectors) return static_cast<uint64_t>(i) / kVector;
    return row * ((walk.channels + kVector - 1) / kVector) + channel / kVector;
  }

  template <FloatType type>
  DAQ_DEVICE void store(const FloatTarget<type>& target, int64_t i,
                        const float (&v)[kVector]) const {
    if constexpr (vectors) {
      store_values<type, kVector>(target, i, v);
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (has(k)) target.store(i + k, to_word<type>(v[k]));
      }
    }
  }
  DAQ_DEVICE void store_codes(const Global<uint8_t>& target, int64_t i,
                              const uint32_t (&b)[kVector]) const {
    if constexpr (vectors) {
      target.store_as(i, pack_bytes(b));
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (has(k)) target.store(i + k, static_cast<uint8_t>(b[k]));
      }
    }
  }
  // Values of a vector with an entry for each channel. It may lie anywhere: a parameter can be a piece
  // of a larger tensor, which must not cost the activations their vectors.
  DAQ_DEVICE void load_channels(const Global<const float>& of_channel, int64_t offset,
                                float (&v)[kVector]) const {
    if (vectors && of_channel.is_aligned(16)) {
      load_values<FloatType::float32, kVector>(of_channel, offset + channel, v);
      return;
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      v[k] = has(k) ? of_channel.load(offset + channel + k) : 0.0f;
    }
  }
};

// A column's values in one row as they lie in memory; without vectors a word each.
template <FloatType type, bool vectors>
struct ColumnWords {
  FloatWords<type, vectors ? kVector : 1> words[vectors ? 1 : kVector];

  // From element i on, where wanted; else the words stay.
  DAQ_DEVICE void load_if(bool wanted, const ColumnPlace<vectors>& place,
                          const FloatSource<type>& source, int64_t i) {
    if constexpr (vectors) {
      words[0].load_if(wanted, source, i);
    } else {
      const int some = wanted ? place.count : 0;
#pragma unroll
      for (int k = 0; k < kVector; ++k) words[k].load_if(k < some, source, i + k);
    }
  }

  DAQ_DEVICE float value(int k) const { return vectors ? words[0].value(k) : words[k].value(0); }
};

// The same of a column's codes.
template <bool vectors>
struct ColumnCodes {
  uint32_t word[vectors ? 2 : kVector] = {};

  DAQ_DEVICE void load_if(bool wanted, const ColumnPlace<vectors>& place,
                          const Global<const uint8_t>& codes, int64_t i) {
    if constexpr (vectors) {
      codes.load_if<8>(wanted, i, word);
    } else {
      const int some = wanted ? place.count : 0;
#pragma unroll
      for (int k = 0; k < kVector; ++k) codes.load_if<1>(k < some, i + k, word + k);
    }
  }
  DAQ_DEVICE float value(int k) const {
    return static_cast<float>(vectors ? word[k / 4] >> (8 * (k % 4)) & 0xffu : word[k]);
  }
};

// Rows whose words a thread has in flight, by the registers that these take.
template <FloatType type, bool vectors>
constexpr int kRowsAhead = !vectors ? 1 : type == FloatType::float32 ? 2 : 3;

// `sums` sums of many floats for each channel of this thread's column: kChunk values in float32, the
// chunks in double. The doubles are in shared memory: they are touched once a chunk, and in
// registers they would leave no room for loads in flight.
template <int sums>
class ChunkedSums {
 public:
  static constexpr int kSlots = Columns::kThreads * kVector;
  static constexpr int64_t kBytes = kSlots * sums * sizeof(double);

  DAQ_DEVICE ChunkedSums() : totals_(0, kSlots * sums) {
    for_slots([&](int slot, float) { totals_.store(slot, 0.0); });
  }

  // Before the sums of a row.
  DAQ_DEVICE void next_row() {
    if (++rows_ <= kChunk) return;
    rows_ = 1;
    flush();
  }
  DAQ_DEVICE void add_to(int which, int k, float v) {
    chunk_[which][k] = add(chunk_[which][k], v);
  }
  // Ends the sums over the block's rows: calls f(which, i, total) for each of the block's channels,
  // i counted within the block. All threads take part.
  template <typename F>
  DAQ_DEVICE void finish(const ColumnWalk& walk, const F& f) {
    flush();
    barrier();
    for (int which = 0; which < sums; ++which) {
      combine_columns<kVector>(walk, Shared<double>(which * kBytes / sums, kSlots),
                               sum_of<double>, [&](int i, double total) { f(which, i, total); });
    }
  }

 private:
  static constexpr int kChunk = 8;

  DAQ_DEVICE void flush() {
    for_slots([&](int slot, float& chunk) {
      totals_.store(slot, totals_.load(slot) + chunk);
      chunk = 0.0f;
    });
  }
  template <typename F>
  DAQ_DEVICE void for_slots(const F& f) {
#pragma unroll
    for (int which = 0; which < sums; ++which) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) f(which * kSlots + column_slot(k), chunk_[which][k]);
    }
  }

  Shared<double> totals_;
  float chunk_[sums][kVector] = {};
  int rows_ = 0;
};

}  // namespace daq_mm::cuda
