// Backward glue: norm_act_reduce, norm_backward_apply, _maxima and _quantize of glue.h.
//
//   gz = g [+ g2, rounded] where the mask passes it, else 0;  y_hat = low + code * step, or y
//   sums of gz and gz * (y_hat - mean) * invstd
//   dy = a * gz + b * y_hat + c, rounded to the float type; its maxima, or its 8-bit form
//
// The gradient that the next convolution's products need exists only as bytes: its maxima are found
// by one pass that computes dy, and the bytes by another one that computes it again.

#include "cuda/glue.h"
#include "cuda/glue_columns.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;

// y as a column's float values: from codes, from the float type, or none.
template <FloatType type>
struct YHat {
  FloatSource<type> y;
  Global<const uint8_t> codes;
  Global<const float> grid;  // (2, channels)

  YHat(const void* data, const float* grid_, const GlueSize& size) {
    if (data == nullptr) return;
    if (grid_ == nullptr) {
      y = source_of<type>({data, size.count(), type});
    } else {
      codes = {static_cast<const uint8_t*>(data), size.count()};
      grid = {grid_, 2 * size.channels};
    }
  }

  DAQ_DEVICE bool is_null() const { return y.is_null() && codes.is_null(); }

  struct OfColumn {
    float low[kVector];
    float step[kVector];
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace& place, OfColumn& c) const {
    if (codes.is_null()) return;
    place.load_channels(grid, 0, c.low);
    place.load_channels(grid, walk.channels, c.step);
  }
  DAQ_DEVICE void load(const ColumnPlace& place, const OfColumn& c, int64_t i,
                       float (&v)[kVector]) const {
    if (codes.is_null()) {
      place.load<type>(y, i, v);
      return;
    }
    place.load_codes(codes, i, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = add(c.low[k], multiply(v[k], c.step[k]));
  }
};

// The gradient before the activation.
template <FloatType type>
struct MaskedGradient {
  FloatSource<type> g;
  FloatSource<type> g2;
  Global<const uint8_t> mask;

  MaskedGradient(const void* g_, const void* g2_, const uint8_t* mask_, const GlueSize& size)
      : g(source_of<type>({g_, size.count(), type})) {
    if (g2_ != nullptr) g2 = source_of<type>({g2_, size.count(), type});
    if (mask_ != nullptr) mask = {mask_, size.mask_bytes()};
  }

  DAQ_DEVICE void load(const ColumnWalk& walk, const ColumnPlace& place, int64_t row,
                       float (&v)[kVector]) const {
    const int64_t i = row * walk.channels + place.channel;
    place.load<type>(g, i, v);
    if (!g2.is_null()) {
      float more[kVector];
      place.load<type>(g2, i, more);
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = rounded_to<type>(add(v[k], more[k]));
    }
    if (mask.is_null()) return;
    const int64_t columns = (walk.channels + kVector - 1) / kVector;
    const uint32_t bits = mask.load(row * columns + place.channel / kVector);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if ((bits >> k & 1u) == 0) v[k] = 0.0f;
    }
  }
};

// partials (2, channels, parts).
template <FloatType type>
DAQ_KERNEL(kThreads, 2)
void reduce_kernel(MaskedGradient<type> gradient, YHat<type> y, Global<const float> mean,
                   Global<const float> invstd, FloatTarget<type> gz, ColumnWalk walk, bool vectors,
                   Global<double> partials) {
  const ColumnPlace place(walk, vectors);
  const bool norm = !mean.is_null();
  typename YHat<type>::OfColumn of_y;
  float m[kVector], s[kVector];
  if (norm) {
    y.of_column(walk, place, of_y);
    place.load_channels(mean, 0, m);
    place.load_channels(invstd, 0, s);
  }
  ChunkedSum sum[kVector], product[kVector];
  if (place.count > 0) {
    int in_chunk = 0;
    walk.for_rows([&](int64_t row) {
      const int64_t i = row * walk.channels + place.channel;
      float v[kVector];
      gradient.load(walk, place, row, v);
      if (!gz.is_null()) place.store<type>(gz, i, v);
      if (++in_chunk > ChunkedSum::kChunk) {
        in_chunk = 1;
        for (int k = 0; k < kVector; ++k) sum[k].flush(), product[k].flush();
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum[k].chunk = add(sum[k].chunk, v[k]);
      if (!norm) return;
      float x[kVector];
      y.load(place, of_y, i, x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        x[k] = multiply(subtract(x[k], m[k]), s[k]);
        product[k].chunk = add(product[k].chunk, multiply(v[k], x[k]));
      }
    });
  }
  const Shared<double> scratch(0, kThreads * kVector);
  const int64_t first = block_y() * walk.across * kVector;
  for (int which = 0; which < 2; ++which) {
    double values[kVector];
    for (int k = 0; k < kVector; ++k) {
      sum[k].flush();
      product[k].flush();
      values[k] = which == 0 ? sum[k].total : product[k].total;
    }
    barrier();
    reduce_columns<kVector>(walk, scratch, values, double_sum, [&](int i, double value) {
      if (first + i >= walk.channels) return;
      partials.store((which * walk.channels + first + i) * walk.parts + block_x(), value);
    });
  }
}

// dy of a column's values.
template <FloatType type>
struct Backward {
  MaskedGradient<type> gradient;
  YHat<type> y;
  Global<const float> coefficients;

  Backward(const NormBackward& a, const GlueSize& size)
      : gradient(a.g, nullptr, a.mask, size),
        y(a.y, a.grid, size),
        coefficients(a.coefficients, 3 * size.channels) {}

  struct OfColumn {
    float a[kVector];
    float b[kVector];
    float c[kVector];
    typename YHat<type>::OfColumn y;
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace& place, OfColumn& c) const {
    place.load_channels(coefficients, 0, c.a);
    place.load_channels(coefficients, walk.channels, c.b);
    place.load_channels(coefficients, 2 * walk.channels, c.c);
    y.of_column(walk, place, c.y);
  }
  // As it would be read again after a store.
  DAQ_DEVICE void load(const ColumnWalk& walk, const ColumnPlace& place, const OfColumn& c,
                       int64_t row, float (&dy)[kVector]) const {
    float x[kVector];
    gradient.load(walk, place, row, dy);
    if (!y.is_null()) y.load(place, c.y, row * walk.channels + place.channel, x);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      dy[k] = multiply(c.a[k], dy[k]);
      if (!y.is_null()) dy[k] = add(dy[k], multiply(c.b[k], x[k]));
      dy[k] = rounded_to<type>(add(dy[k], c.c[k]));
    }
  }
};

template <FloatType type>
DAQ_KERNEL(kThreads, 2)
void apply_kernel(Backward<type> backward, ColumnWalk walk, bool vectors, FloatTarget<type> dy) {
  const ColumnPlace place(walk, vectors);
  if (place.count == 0) return;
  typename Backward<type>::OfColumn c;
  backward.of_column(walk, place, c);
  walk.for_rows([&](int64_t row) {
    float v[kVector];
    backward.load(walk, place, c, row, v);
    place.store<type>(dy, row * walk.channels + place.channel, v);
  });
}

// maxima: bits of (channels + 1) absolute maxima, the last one of all.
template <FloatType type>
DAQ_KERNEL(kThreads, 2)
void maxima_kernel(Backward<type> backward, ColumnWalk walk, bool vectors,
                   Global<uint32_t> maxima) {
  const ColumnPlace place(walk, vectors);
  uint32_t most[kVector] = {};
  if (place.count > 0) {
    typename Backward<type>::OfColumn c;
    backward.of_column(walk, place, c);
    walk.for_rows([&](int64_t row) {
      float v[kVector];
      backward.load(walk, place, c, row, v);
#pragma unroll
      for (int k = 0; k < kVector; ++k) most[k] = larger(most[k], bits_of(v[k]) & ~kSignBit);
    });
  }
  const int64_t first = block_y() * walk.across * kVector;
  uint32_t of_all = 0;
  reduce_columns<kVector>(walk, Shared<uint32_t>(0, kThreads * kVector), most, larger,
                          [&](int i, uint32_t value) {
                            if (first + i >= walk.channels) return;
                            atomic_max(maxima, first + i, value);
                            of_all = larger(of_all, value);
                          });
  of_all = reduce_warp(of_all, larger);
  if (lane_index() == 0 && of_all > 0) atomic_max(maxima, walk.channels, of_all);
}

template <FloatType type>
DAQ_KERNEL(kThreads, 2)
void quantize_kernel(Backward<type> backward, ColumnWalk walk, bool vectors,
                     Global<const float> threshold, bool by_channel, Global<const int64_t> seed,
                     Global<uint8_t> q) {
  const ColumnPlace place(walk, vectors);
  if (place.count == 0) return;
  const GradientRounding rounding(seed);
  typename Backward<type>::OfColumn c;
  backward.of_column(walk, place, c);
  float inverse[kVector];
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const int64_t channel = k < place.count ? place.channel + k : place.channel;
    inverse[k] = inverse_step(threshold.load(by_channel ? channel : 0), kSignedLevels);
  }
  walk.for_rows([&](int64_t row) {
    const int64_t i = row * walk.channels + place.channel;
    float v[kVector];
    backward.load(walk, place, c, row, v);
    uint32_t b[kVector];
#pragma unroll
    for (int k = 0; k < kVector; ++k) b[k] = rounding.quantize(v[k], inverse[k], i + k);
    place.store_codes(q, i, b);
  });
}

}  // namespace

int64_t norm_act_reduce_workspace(const GlueSize& size) {
  return 2 * size.channels * glue_columns(size).parts * sizeof(double);
}

void norm_act_reduce(const NormActReduce& a, const GlueSize& size, void* workspace,
                     Stream stream) {
  if (size.count() == 0) {
    clear(a.sums, 2 * size.channels * sizeof(double), stream);
    return;
  }
  const Columns columns = glue_columns(size);
  double* partials = static_cast<double*>(workspace);
  const int64_t entries = 2 * size.channels;
  const bool vectors = all_aligned(size, a.g, a.g2, a.y, a.gz);
  with_float_type(size.type, [&](auto type) {
    launch(reduce_kernel<type()>, columns.grid, kThreads, kThreads * kVector * sizeof(double),
           stream, MaskedGradient<type()>(a.g, a.g2, a.mask, size), YHat<type()>(a.y, a.grid, size),
           a.mean == nullptr ? Global<const float>() : Global<const float>(a.mean, size.channels),
           a.mean == nullptr ? Global<const float>() : Global<const float>(a.invstd, size.channels),
           a.gz == nullptr ? FloatTarget<type()>() : target_of<type()>(a.gz, size.count()),
           ColumnWalk(columns), vectors, Global<double>(partials, entries * columns.parts));
  });
  combine_parts(partials, entries, columns.parts, a.sums, stream);
}

void norm_backward_apply(const NormBackward& a, const GlueSize& size, void* dy, Stream stream) {
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  with_float_type(size.type, [&](auto type) {
    launch(apply_kernel<type()>, columns.grid, kThreads, 0, stream, Backward<type()>(a, size),
           ColumnWalk(columns), all_aligned(size, a.g, a.y, dy),
           target_of<type()>(dy, size.count()));
  });
}

void norm_backward_maxima(const NormBackward& a, const GlueSize& size, float* maxima,
                          Stream stream) {
  clear(maxima, (size.channels + 1) * sizeof(float), stream);
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  with_float_type(size.type, [&](auto type) {
    launch(maxima_kernel<type()>, columns.grid, kThreads, kThreads * kVector * sizeof(uint32_t),
           stream, Backward<type()>(a, size), ColumnWalk(columns), all_aligned(size, a.g, a.y),
           Global<uint32_t>(reinterpret_cast<uint32_t*>(maxima), size.channels + 1));
  });
}

void norm_backward_quantize(const NormBackward& a, const GlueSize& size, const float* threshold,
                            int64_t thresholds, const int64_t* seed, int8_t* q, Stream stream) {
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  with_float_type(size.type, [&](auto type) {
    launch(quantize_kernel<type()>, columns.grid, kThreads, 0, stream, Backward<type()>(a, size),
           ColumnWalk(columns), all_aligned(size, a.g, a.y, q),
           Global<const float>(threshold, thresholds), thresholds > 1,
           seed == nullptr ? Global<const int64_t>() : Global<const int64_t>(seed, 1),
           Global<uint8_t>(reinterpret_cast<uint8_t*>(q), size.count()));
  });
}

}  // namespace daq_mm::cuda
