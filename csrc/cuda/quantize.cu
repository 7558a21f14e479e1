// Activations and gradients to 8 bits, channels-last: quantize_x and quantize_g of launches.h.
//
//   q = round_half_even(clamp(v * inverse)), inverse = levels / threshold   (rounding_laws.h)
//
// quantize_x: a sweep for the extremes, reduced by atomics on bits; a second one writes bytes, each
// thread making the grid from the extremes for itself. quantize_g: the second sweep alone, with one
// inverse a tensor (in memory's order) or a channel (by columns). Channels-first sources go through
// tiles of 64 channels x 64 positions, which are transposed as bytes in shared memory.

#include <algorithm>

#include "cuda/channel_columns.h"
#include "cuda/float_source.h"
#include "cuda/launches.h"
#include "cuda/primitives/multiprocessors.h"
#include "cuda/rounding_laws.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsOfThread = 2;  // loads in flight
constexpr int kRowsAhead = 3;        // by columns
constexpr int64_t kBlockValues = int64_t{kThreads} * kVector * kVectorsOfThread;
constexpr int kTile = 64;         // channels and positions of a transposed tile
constexpr int kTileStride = 68;  // bytes between a tile's positions: a multiple of 4
constexpr int64_t kMostParts = 4096;

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

int64_t blocks_for(int64_t count) { return (count + kBlockValues - 1) / kBlockValues; }

// Calls f(i, v) for vectors, and g(i, v) for single values, of the block's values; `count` is the
// source's. Vectors of a thread are loaded together, before f sees the first.
template <FloatType type, typename F, typename G>
DAQ_DEVICE void for_block_values(const FloatSource<type>& x, int64_t count, bool vectors,
                                 int64_t start, const F& f, const G& g) {
  if (vectors && start + kBlockValues <= count) {
    float v[kVectorsOfThread][kVector];
    const int64_t first = start + thread_index() * kVector;
#pragma unroll
    for (int k = 0; k < kVectorsOfThread; ++k) {
      load_values<type, kVector>(x, first + k * kThreads * kVector, v[k]);
    }
#pragma unroll
    for (int k = 0; k < kVectorsOfThread; ++k) f(first + k * kThreads * kVector, v[k]);
    return;
  }
  const int64_t end = start + kBlockValues < count ? start + kBlockValues : count;
  for (int64_t i = start + thread_index(); i < end; i += kThreads) {
    float v[1];
    load_values<type, 1>(x, i, v);
    g(i, v);
  }
}

template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void extremes_kernel(FloatSource<type> x, int64_t count, bool vectors, Global<uint32_t> result) {
  Extremes seen;
  const auto see = [&](int64_t, const auto& values) {
    for (const float v : values) seen.see(v);
  };
  for (int64_t start = block_x() * kBlockValues; start < count; start += grid_x() * kBlockValues) {
    for_block_values<type>(x, count, vectors, start, see, see);
  }
  gather_extremes(seen, result);
}

// What makes bytes of an activation: one grid for the tensor.
struct ActivationLaw {
  Global<const uint32_t> extremes;
  bool allow_unsigned;
  Global<float> qparams;

  struct OfChannel {
    ActivationGrid grid;
    DAQ_DEVICE uint32_t operator()(float v, int64_t /*index*/) const { return grid.quantize(v); }
  };
  DAQ_DEVICE OfChannel of_channel(int64_t /*channel*/) const {
    return {ActivationGrid({extremes.load(0), extremes.load(1)}, allow_unsigned)};
  }
  // Called once, by one thread of the launch.
  DAQ_DEVICE void finish() const {
    const ActivationGrid grid = of_channel(0).grid;
    qparams.store(0, divide(grid.threshold, grid.levels));
    qparams.store(1, grid.zero_point);
  }
};

// The same on a grid that is known by its step.
struct KnownGridLaw {
  Global<const float> qparams;

  struct OfChannel {
    float inverse;
    float levels;
    float zero_point;
    DAQ_DEVICE uint32_t operator()(float v, int64_t /*index*/) const {
      const float scaled = multiply(v, inverse);
      return rounded_bits(scaled == scaled ? clamped(scaled, levels) : 0.0f, zero_point);
    }
  };
  DAQ_DEVICE OfChannel of_channel(int64_t /*channel*/) const {
    const float step = qparams.load(0), zero_point = qparams.load(1);
    const float levels = zero_point == 0.0f ? kUnsignedLevels : kSignedLevels;
    const float inverse = divide(levels, multiply(step, levels));
    return {is_finite(inverse) && is_finite(step) ? inverse : 0.0f, levels, zero_point};
  }
  DAQ_DEVICE void finish() const {}
};

// What makes bytes of a gradient: one threshold for the tensor or each channel.
struct GradientLaw {
  Global<const float> threshold;
  bool by_channel;
  Global<const int64_t> seed;

  struct OfChannel {
    GradientRounding rounding;
    float inverse;
    DAQ_DEVICE uint32_t operator()(float v, int64_t index) const {
      return rounding.quantize(v, inverse, index);
    }
  };
  DAQ_DEVICE OfChannel of_channel(int64_t channel) const {
    const float s = threshold.load(by_channel ? channel : 0);
    return {GradientRounding(seed), inverse_step(s, kSignedLevels)};
  }
  DAQ_DEVICE void finish() const {}
};

template <typename law_t>
DAQ_DEVICE void finish_once(const law_t& law) {
  if (block_x() == 0 && block_y() == 0 && thread_index() == 0) law.finish();
}

// In memory's order, with one law for all.
template <FloatType type, typename law_t>
DAQ_KERNEL(kThreads, 4)
void quantize_in_order(FloatSource<type> x, int64_t count, bool vectors, law_t law,
                       Global<uint8_t> q) {
  finish_once(law);
  const auto quantize = law.of_channel(0);
  const auto bytes = [&](int64_t i, const auto& values) {
    constexpr int width = sizeof(values) / sizeof(float);
    uint32_t b[width];
#pragma unroll
    for (int k = 0; k < width; ++k) b[k] = quantize(values[k], i + k);
    store_bytes<width>(q, i, b);
  };
  for_block_values<type>(x, count, vectors, block_x() * kBlockValues, bytes, bytes);
}

// Channels-last, with an inverse for each channel.
template <FloatType type, int width>
DAQ_KERNEL(Columns::kThreads, 4)
void quantize_columns(FloatSource<type> g, ColumnWalk walk, GradientLaw law, Global<uint8_t> q) {
  const int64_t channel = walk.channel<width>();
  if (channel >= walk.channels) return;
  using Words = FloatWords<type, width>;
  const auto load = [&](bool wanted, int64_t, int64_t i, Words& words) {
    words.load_if(wanted, g, i);
  };
  auto rows = rows_ahead<kRowsAhead, Words>(walk, channel, load);
  const GradientRounding rounding(law.seed);
  float inverse[width];
#pragma unroll
  for (int k = 0; k < width; ++k) inverse[k] = law.of_channel(channel + k).inverse;
  rows.for_each([&](int64_t, int64_t i, const Words& words) {
    float v[width];
#pragma unroll
    for (int k = 0; k < width; ++k) v[k] = words.value(k);
    uint32_t b[width];
    rounding.quantize<true>(v, inverse, i, b);
    store_bytes<width>(q, i, b);
  });
}

// Channels-first: block (x, y) makes positions [64 x, ..) of one image, channels [64 y, ..).
template <FloatType type, typename law_t>
DAQ_KERNEL(kThreads, 4)
void quantize_transposed(FloatSource<type> x, int64_t channels, int64_t spatial, bool vectors,
                         law_t law, Global<uint8_t> q) {
  const Shared<uint8_t> tile(0, kTile * kTileStride);
  finish_once(law);
  const int64_t tiles = (spatial + kTile - 1) / kTile;
  const int64_t n = block_x() / tiles, position = block_x() % tiles * kTile;
  const int64_t channel = block_y() * kTile;
  const int64_t rest = spatial - position;
  for (int item = thread_index(); item < kTile * kTile / kVector; item += kThreads) {
    const int64_t c = channel + item / (kTile / kVector);
    const int p = item % (kTile / kVector) * kVector;
    if (c >= channels || p >= rest) continue;
    const int64_t from = (n * channels + c) * spatial + position + p;
    const int some = rest - p < kVector ? static_cast<int>(rest - p) : kVector;
    float v[kVector];
    if (vectors && some == kVector) {
      load_values<type, kVector>(x, from, v);
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = k < some ? from_word<type>(x.load(from + k)) : 0.0f;
    }
    const auto quantize = law.of_channel(c);
    const int64_t index = (n * spatial + position + p) * channels + c;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {  // no index may vary, or v would be in local memory
      if (k >= some) continue;
      tile.store((p + k) * kTileStride + (c - channel),
                 static_cast<uint8_t>(quantize(v[k], index + k * channels)));
    }
  }
  barrier();
  const int64_t to = (n * spatial + position) * channels + channel;
  const int across = channels - channel < kTile ? static_cast<int>(channels - channel) : kTile;
  const int down = rest < kTile ? static_cast<int>(rest) : kTile;
  if (channels % 4 == 0) {
    for (int item = thread_index(); item < down * across / 4; item += kThreads) {
      const int p = item / (across / 4), c = item % (across / 4) * 4;
      q.store_as(to + p * channels + c, tile.load_as<uint32_t>(p * kTileStride + c));
    }
  } else {
    for (int item = thread_index(); item < down * across; item += kThreads) {
      const int p = item / across, c = item % across;
      q.store(to + p * channels + c, tile.load(p * kTileStride + c));
    }
  }
}

template <FloatType type, typename law_t>
void launch_transposed(const FloatImage& x, const law_t& law, const Global<uint8_t>& q,
                       Stream stream) {
  constexpr int64_t size = type == FloatType::float32 ? 4 : 2;
  const Grid grid{x.n * ((x.spatial + kTile - 1) / kTile), (x.c + kTile - 1) / kTile};
  const bool vectors = aligned(x.values.data) && x.spatial * size % 16 == 0;
  launch(quantize_transposed<type, law_t>, grid, kThreads, kTile * kTileStride, stream,
         source_of<type>(x.values), x.c, x.spatial, vectors, law, q);
}

template <FloatType type, typename law_t>
void launch_in_order(const FloatData& x, const law_t& law, const Global<uint8_t>& q,
                     Stream stream) {
  launch(quantize_in_order<type, law_t>, Grid{blocks_for(x.count)}, kThreads, 0, stream,
         source_of<type>(x), x.count, aligned(x.data), law, q);
}

// Either memory order, with one law for all.
template <typename law_t>
void launch_one_law(const FloatImage& x, const law_t& law, uint8_t* q, Stream stream) {
  const Global<uint8_t> target(q, x.values.count);
  with_float_type(x.values.type, [&](auto type) {
    if (x.last) {
      launch_in_order<type()>(x.values, law, target, stream);
    } else {
      launch_transposed<type()>(x, law, target, stream);
    }
  });
}

// The law's finish() where there is no value to quantize.
template <typename law_t>
DAQ_KERNEL(kWarp, 1)
void finish_kernel(law_t law) {
  finish_once(law);
}

}  // namespace

void find_extremes(const FloatData& x, uint32_t* extremes, Stream stream) {
  clear(extremes, kExtremes * sizeof(uint32_t), stream);
  if (x.count == 0) return;
  const int64_t blocks = std::min<int64_t>(blocks_for(x.count), 8 * multiprocessors().count);
  with_float_type(x.type, [&](auto type) {
    launch(extremes_kernel<type()>, Grid{blocks}, kThreads, kExtremesShared, stream,
           source_of<type()>(x), x.count, aligned(x.data), Global<uint32_t>(extremes, kExtremes));
  });
}

void quantize_x(const FloatImage& x, bool allow_unsigned, uint32_t* extremes, uint8_t* q,
                float* qparams, Stream stream) {
  find_extremes(x.values, extremes, stream);
  quantize_by_extremes(x, allow_unsigned, extremes, q, qparams, stream);
}

void quantize_by_extremes(const FloatImage& x, bool allow_unsigned, const uint32_t* extremes,
                          uint8_t* q, float* qparams, Stream stream) {
  if (x.values.count == 0) {
    extremes_to_qparams(extremes, allow_unsigned, qparams, stream);
    return;
  }
  const ActivationLaw law{Global<const uint32_t>(extremes, kExtremes), allow_unsigned,
                          Global<float>(qparams, 2)};
  launch_one_law(x, law, q, stream);
}

void extremes_to_qparams(const uint32_t* extremes, bool allow_unsigned, float* qparams,
                         Stream stream) {
  const ActivationLaw law{Global<const uint32_t>(extremes, kExtremes), allow_unsigned,
                          Global<float>(qparams, 2)};
  launch(finish_kernel<ActivationLaw>, Grid{}, kWarp, 0, stream, law);
}

void quantize_x_with(const FloatImage& x, const float* qparams, uint8_t* q, Stream stream) {
  if (x.values.count == 0) return;
  launch_one_law(x, KnownGridLaw{Global<const float>(qparams, 2)}, q, stream);
}

void quantize_g(const FloatImage& g, const float* threshold, int64_t thresholds,
                const int64_t* seed, int8_t* q, Stream stream) {
  if (g.values.count == 0) return;
  const GradientLaw law{Global<const float>(threshold, thresholds), thresholds > 1,
                        seed == nullptr ? Global<const int64_t>() : Global<const int64_t>(seed, 1)};
  const Global<uint8_t> target(reinterpret_cast<uint8_t*>(q), g.values.count);
  with_float_type(g.values.type, [&](auto type) {
    if (!g.last) {
      launch_transposed<type()>(g, law, target, stream);
    } else if (!law.by_channel) {
      launch_in_order<type()>(g.values, law, target, stream);
    } else {
      const bool vectors = aligned(g.values.data) && g.c % kVector == 0;
      const Columns columns(g.rows(), g.c, vectors, kMostParts);
      const auto kernel =
          vectors ? quantize_columns<type(), kVector> : quantize_columns<type(), 1>;
      launch(kernel, columns.grid, Columns::kThreads, 0, stream, source_of<type()>(g.values),
             ColumnWalk(columns), law, target);
    }
  });
}

}  // namespace daq_mm::cuda
