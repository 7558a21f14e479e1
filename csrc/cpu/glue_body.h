// The loops of glue.h, written once: included by each glue_*.cpp within its own #pragma GCC target
// after its vectors_*.h, so everything here is in an anonymous namespace and uses no library.
//
// Sums: eight pixels of a channel in float32, these in double. The backward loops go along the
// channels with eight pixels at a time, so that a channel's constants are loaded once for them. Tasks
// are copied, so that the compiler sees that no store changes them.

#include "cpu/random_rounding.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kChunk = 8;  // pixels

inline int64_t chunk_after(int64_t first, int64_t last) {
  return last - first < kChunk ? last - first : kChunk;
}

// Have the value that is a chunk behind this one fetched, which the processor does not foresee.
inline void prefetch_next(const void* values, int64_t at, int64_t size, int64_t channels) {
  __builtin_prefetch(static_cast<const uint8_t*>(values) + (at + kChunk * channels) * size);
}

// Calls f(c, All) for whole vectors of the channels [first, last) and f(c, Some) for the rest.
template <typename F>
inline __attribute__((always_inline)) void for_channels(int64_t first, int64_t last, const F& f) {
  int64_t c = first;
  for (; c + kWidth <= last; c += kWidth) f(c, All{});
  if constexpr (kWidth > 1) {
    if (c < last) f(c, Some(last - c));
  }
}

// ---- forward ----

template <typename D>
void stats(const void* y, int64_t channels, int64_t first, int64_t last, const StatsSums& sums) {
  for (int64_t pixel = first; pixel < last; pixel += kChunk) {
    const int64_t count = chunk_after(pixel, last);
    for_channels(0, channels, [&](int64_t c, auto which) __attribute__((always_inline)) {
      Floats sum = set(0), squares = set(0);
      Floats least = load(sums.least + c), most = load(sums.most + c);
      for (int64_t p = 0; p < count; ++p) {
        const int64_t at = (pixel + p) * channels + c;
        prefetch_next(y, at, D::kSize, channels);
        const Floats v = load(D{}, y, at, which);
        sum = add(sum, v);
        squares = add(squares, mul(v, v));
        least = smaller(v, least);
        most = larger(v, most);
      }
      add_to(sums.sum + c, sum);
      add_to(sums.squares + c, squares);
      store(least, sums.least + c);
      store(most, sums.most + c);
    });
  }
}

template <typename D, bool kResidual>
void norm_act(const NormActTask& task, int64_t first, int64_t last, uint32_t* magnitude_seen,
              uint32_t* raw_seen) {
  const NormActTask t = task;
  const Floats zero = set(0), six = set(6), full = set(255);
  const Floats q_inverse = set(t.q_inverse), high = set(t.q_levels), low = set(-t.q_levels);
  const Ints zero_point = set_int(static_cast<uint32_t>(t.zero_point));
  Ints most = set_int(0), raw = set_int(0);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    const int64_t row = pixel * t.channels;
    uint8_t* mask = t.mask + pixel * mask_bytes(t.channels);
    for_channels(0, t.channels, [&](int64_t c, auto which) __attribute__((always_inline)) {
      const Floats y = load(D{}, t.y, row + c, which);
      Floats v = add(mul(y, load(t.scale + c)), load(t.shift + c));
      if constexpr (kResidual) v = add(v, load(D{}, t.residual, row + c, which));
      Floats out = v = rounded(D{}, v);
      if (t.act != 0) {
        Lanes passes = not_below_or_at(v, zero);
        out = keep(passes, v);
        if (t.act == 2) {
          out = smaller(six, out);
          passes = both(passes, not_above_or_at(v, six));
        }
        store_bits(passes, mask, c, which);
      }
      if (t.out != nullptr) store(D{}, out, t.out, row + c, which);
      if constexpr (kResidual) {
        most = larger_bits(most, magnitude(out));
        raw = larger_bits(raw, raw_bits(out));
      } else if (t.q != nullptr) {
        const Ints q = nearest(clamp(mul(out, q_inverse), low, high));
        store_bytes(add(q, zero_point), t.q + row + c, which);
      }
      if (t.codes != nullptr) {
        const Floats at = mul(sub(y, load(t.low + c)), load(t.inverse + c));
        store_bytes(nearest(clamp(at, zero, full)), t.codes + row + c, which);
      }
    });
  }
  if constexpr (kResidual) {
    uint32_t lanes[2][kWidth];
    store(most, lanes[0]);
    store(raw, lanes[1]);
    for (int64_t i = 0; i < kWidth; ++i) {
      if (lanes[0][i] > *magnitude_seen) *magnitude_seen = lanes[0][i];
      if (lanes[1][i] > *raw_seen) *raw_seen = lanes[1][i];
    }
  }
}

// ---- backward ----

// A vector of channels' constants.
template <YKind kY>
struct Column {
  Floats low, step;
  Column(const GradientTask& t, int64_t c) {
    if constexpr (kY == YKind::kCodes) {
      low = load(t.low + c);
      step = load(t.step + c);
    }
  }
};

template <typename D, YKind kY, typename Which>
inline Floats y_hat(const GradientTask& t, const Column<kY>& column, int64_t at, Which which) {
  if constexpr (kY == YKind::kCodes) {
    prefetch_next(t.y, at, 1, t.channels);
    const Floats code = load_bytes(static_cast<const uint8_t*>(t.y) + at, which);
    return add(column.low, mul(code, column.step));
  } else {
    return load(D{}, t.y, at, which);
  }
}

template <typename D, typename Which>
inline Floats gradient(const GradientTask& t, int64_t pixel, int64_t c, Which which) {
  const int64_t at = pixel * t.channels + c;
  prefetch_next(t.g, at, D::kSize, t.channels);
  Floats g = load(D{}, t.g, at, which);
  if (t.g2 != nullptr) {
    prefetch_next(t.g2, at, D::kSize, t.channels);
    g = rounded(D{}, add(g, load(D{}, t.g2, at, which)));
  }
  if (t.mask != nullptr) {
    g = keep(load_bits(t.mask + pixel * mask_bytes(t.channels), c, which), g);
  }
  return g;
}

template <typename D, YKind kY>
void reduce(const GradientTask& task, int64_t first, int64_t last, double* sums) {
  const GradientTask t = task;
  double* products = sums + glue_width(t.channels);
  for (int64_t pixel = first; pixel < last; pixel += kChunk) {
    const int64_t count = chunk_after(pixel, last);
    for_channels(t.first_channel, t.last_channel, [&](int64_t c, auto which) __attribute__((always_inline)) {
      const Column<kY> column(t, c);
      Floats mean = set(0), invstd = set(0), sum = set(0), product = set(0);
      if constexpr (kY != YKind::kNone) {
        mean = load(t.mean + c);
        invstd = load(t.invstd + c);
      }
      for (int64_t p = 0; p < count; ++p) {
        const int64_t at = (pixel + p) * t.channels + c;
        const Floats gz = gradient<D>(t, pixel + p, c, which);
        if (t.out != nullptr) store(D{}, gz, t.out, at, which);
        sum = add(sum, gz);
        if constexpr (kY != YKind::kNone) {
          const Floats centred = sub(y_hat<D, kY>(t, column, at, which), mean);
          product = add(product, mul(gz, mul(centred, invstd)));
        }
      }
      add_to(sums + c, sum);
      if constexpr (kY != YKind::kNone) add_to(products + c, product);
    });
  }
}

// Calls f(dy rounded to D, pixel, c, which) for all values, and before(c), after(c) around a chunk's
// pixels of the same channels.
template <typename D, YKind kY, typename Before, typename F, typename After>
inline __attribute__((always_inline)) void for_dy(const GradientTask& task, int64_t first,
                                                  int64_t last, const Before& before, const F& f,
                                                  const After& after) {
  const GradientTask t = task;
  for (int64_t pixel = first; pixel < last; pixel += kChunk) {
    const int64_t count = chunk_after(pixel, last);
    for_channels(0, t.channels, [&](int64_t channel, auto which) __attribute__((always_inline)) {
      const Column<kY> column(t, channel);
      const Floats a = load(t.a + channel), c = load(t.c + channel);
      Floats b = set(0);
      if constexpr (kY != YKind::kNone) b = load(t.b + channel);
      before(channel);
      for (int64_t p = 0; p < count; ++p) {
        const int64_t at = (pixel + p) * t.channels + channel;
        Floats dy = mul(a, gradient<D>(t, pixel + p, channel, which));
        if constexpr (kY != YKind::kNone) {
          dy = add(dy, mul(b, y_hat<D, kY>(t, column, at, which)));
        }
        f(rounded(D{}, add(dy, c)), at, which);
      }
      after(channel);
    });
  }
}

inline __attribute__((always_inline)) void nothing(int64_t) {}

template <typename D, YKind kY>
void apply(const GradientTask& task, int64_t first, int64_t last) {
  const GradientTask t = task;
  for_dy<D, kY>(
      t, first, last, nothing,
      [&](Floats dy, int64_t at, auto which)
          __attribute__((always_inline)) { store(D{}, dy, t.out, at, which); },
      nothing);
}

template <typename D, YKind kY>
void maxima(const GradientTask& t, int64_t first, int64_t last, uint32_t* magnitudes) {
  Ints most = set_int(0);
  for_dy<D, kY>(
      t, first, last,
      [&](int64_t c) __attribute__((always_inline)) { most = load(magnitudes + c); },
      [&](Floats dy, int64_t, auto)
          __attribute__((always_inline)) { most = larger_bits(most, magnitude(dy)); },
      [&](int64_t c) __attribute__((always_inline)) { store(most, magnitudes + c); });
}

// Inputs of the hash for the values at `at` and behind it.
inline Ints hash_inputs(int64_t at, uint32_t seed, Ints ramp_of_strides) {
  const auto input = [&](int64_t i) {
    return static_cast<uint32_t>(i) * kHashStride +
           static_cast<uint32_t>(i >> 32) * kHashHighStride + seed;
  };
  if (static_cast<uint32_t>(at) <= UINT32_MAX - kWidth) {
    return add(ramp_of_strides, set_int(input(at)));
  }
  uint32_t each[kWidth];  // the high word changes within the vector
  for (int64_t i = 0; i < kWidth; ++i) each[i] = input(at + i);
  return load(each);
}

template <typename D, YKind kY>
void quantize_dy(const GradientTask& task, int64_t first, int64_t last) {
  const GradientTask t = task;
  const Floats high = set(127), low = set(-127);
  const Ints strides = mul(ramp(), set_int(kHashStride));
  Floats inverse = set(0);
  for_dy<D, kY>(
      t, first, last,
      [&](int64_t c) __attribute__((always_inline)) { inverse = load(t.q_inverse + c); },
      [&](Floats dy, int64_t at, auto which) __attribute__((always_inline)) {
        const Floats scaled = mul(dy, inverse);
        const Ints q = t.random ? randomly_rounded(scaled, hash_inputs(at, t.seed, strides))
                                : nearest(clamp(scaled, low, high));
        store_bytes(q, reinterpret_cast<uint8_t*>(t.q) + at, which);
      },
      nothing);
}

#define DAQ_MM_BY_Y(f, D) {f<D, YKind::kNone>, f<D, YKind::kFloat>, f<D, YKind::kCodes>}
#define DAQ_MM_BY_DTYPE_AND_Y(f) \
  { DAQ_MM_BY_Y(f, Float32), DAQ_MM_BY_Y(f, BFloat16), DAQ_MM_BY_Y(f, Half) }

constexpr GlueLoops kGlueLoops{
    {stats<Float32>, stats<BFloat16>, stats<Half>},
    {{norm_act<Float32, false>, norm_act<Float32, true>},
     {norm_act<BFloat16, false>, norm_act<BFloat16, true>},
     {norm_act<Half, false>, norm_act<Half, true>}},
    DAQ_MM_BY_DTYPE_AND_Y(reduce),
    DAQ_MM_BY_DTYPE_AND_Y(apply),
    DAQ_MM_BY_DTYPE_AND_Y(maxima),
    DAQ_MM_BY_DTYPE_AND_Y(quantize_dy)};

#undef DAQ_MM_BY_Y
#undef DAQ_MM_BY_DTYPE_AND_Y

}  // namespace
}  // namespace daq_mm::cpu
