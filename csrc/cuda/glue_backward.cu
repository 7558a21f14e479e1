// Backward glue: norm_act_reduce, norm_backward_apply, _maxima and _quantize of glue.h.
//
//   gz = g [+ g2, rounded] where the mask passes it, else 0;  y_hat = low + code * step, or y
//   sums of gz and gz * (y_hat - mean) * invstd
//   dy = a * gz + b * y_hat + c, rounded to the float type; its maxima, or its 8-bit form
//
// The gradient that the next convolution's products need exists only as bytes: its maxima are found
// by one pass that computes dy, and the bytes by another one that computes it again.

#include "cuda/glue.h"
#include "cuda/glue_gradient.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;

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
    reduce_columns<kVector>(walk, scratch, values, sum_of<double>, [&](int i, double value) {
      if (first + i >= walk.channels) return;
      partials.store((which * walk.channels + first + i) * walk.parts + block_x(), value);
    });
  }
}

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
