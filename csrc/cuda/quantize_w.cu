// Weights to 8 bits, contiguous, and steps: quantize_w, quantize_w_folded and multiply_steps of
// launches.h.
//
//   q = round_half_even(w * inverse)                      one threshold a tensor
//   q = round_half_even(w[c][i] * g_step[c] * inverse[i]) one threshold an input channel i of its
//                                                         group, over the folded values
//
// Weights are small: every thread makes a value, written in order and read wherever the source's
// memory order has it. A folded weight's maxima are taken down the rows of a group, by threads that
// each own a column, before an atomic on the channel.

#include <algorithm>

#include "cuda/float_source.h"
#include "cuda/launches.h"
#include "cuda/rounding_laws.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRowsOfBlock = 32;

// A weight's memory: rows of one output channel, [ci][taps] or, if last, [taps][ci].
struct WeightMemory {
  int64_t ci;
  int64_t taps;
  bool last;
  int64_t rows_of_group;

  WeightMemory(const FloatWeight& w, int64_t groups)
      : ci(w.ci), taps(w.taps), last(w.last), rows_of_group(w.co / groups) {}

  DAQ_DEVICE int64_t row() const { return ci * taps; }
  // Channel at place i of a row as it lies in memory.
  DAQ_DEVICE int64_t channel_at(int64_t i) const { return last ? i % ci : i / taps; }
  // Place in memory of place i of a contiguous row.
  DAQ_DEVICE int64_t source(int64_t i) const { return last ? i % taps * ci + i / taps : i; }
};

template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void quantize_kernel(FloatSource<type> w, WeightMemory memory, int64_t count,
                     Global<const uint32_t> extremes, Global<int8_t> q, Global<float> step) {
  const ActivationGrid grid({extremes.load(0), kSignBit}, false);
  const int64_t i = block_x() * kThreads + thread_index();
  if (i == 0) step.store(0, divide(grid.threshold, kSignedLevels));
  if (i >= count) return;
  const int64_t row = i / memory.row();
  const float v = from_word<type>(w.load(row * memory.row() + memory.source(i % memory.row())));
  q.store(i, static_cast<int8_t>(rounded_bits(clamped(multiply(v, grid.inverse), grid.limit), 0)));
}

// Block (x, y, z): 256 places of the rows [32 y, 32 y + 32) of group z.
template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void folded_maxima_kernel(FloatSource<type> w, WeightMemory memory, Global<const float> threshold,
                          Global<uint32_t> maxima) {
  const int64_t i = block_x() * kThreads + thread_index();
  if (i >= memory.row()) return;
  const int64_t begin = block_y() * kRowsOfBlock;
  const int64_t end =
      begin + kRowsOfBlock < memory.rows_of_group ? begin + kRowsOfBlock : memory.rows_of_group;
  uint32_t most = 0;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = block_z() * memory.rows_of_group + r;
    const float g_step = divide(threshold.load(row), kSignedLevels);
    const float v = from_word<type>(w.load(row * memory.row() + i));
    most = larger(most, bits_of(multiply(v, g_step)) & ~kSignBit);
  }
  atomic_max(maxima, block_z() * memory.ci + memory.channel_at(i), most);
}

template <FloatType type>
DAQ_KERNEL(kThreads, 4)
void quantize_folded_kernel(FloatSource<type> w, WeightMemory memory, int64_t count,
                            int64_t channels, Global<const float> threshold,
                            Global<const uint32_t> maxima, Global<int8_t> q, Global<float> step) {
  const int64_t i = block_x() * kThreads + thread_index();
  if (i < channels) step.store(i, divide(float_of_bits(maxima.load(i)), kSignedLevels));
  if (i >= count) return;
  const int64_t row = i / memory.row(), place = i % memory.row();
  const int64_t channel = row / memory.rows_of_group * memory.ci + place / memory.taps;
  const float inverse = inverse_step(float_of_bits(maxima.load(channel)), kSignedLevels);
  const float limit = inverse == 0.0f ? 0.0f : kSignedLevels;  // see ActivationGrid
  const float g_step = divide(threshold.load(row), kSignedLevels);
  const float v = from_word<type>(w.load(row * memory.row() + memory.source(place)));
  const float folded = multiply(v, g_step);
  q.store(i, static_cast<int8_t>(rounded_bits(clamped(multiply(folded, inverse), limit), 0)));
}

DAQ_KERNEL(kThreads, 4)
void steps_kernel(Global<const float> threshold, bool by_channel, Global<const float> w_step,
                  int64_t count, Global<float> steps) {
  const int64_t i = block_x() * kThreads + thread_index();
  if (i >= count) return;
  const float step = divide(threshold.load(by_channel ? i : 0), kSignedLevels);
  steps.store(i, w_step.is_null() ? step : multiply(step, w_step.load(0)));
}

Grid blocks_for(int64_t count) {
  return {std::max<int64_t>((count + kThreads - 1) / kThreads, 1)};
}

}  // namespace

void quantize_w(const FloatWeight& w, uint32_t* extremes, int8_t* q, float* step, Stream stream) {
  find_extremes(w.values, extremes, stream);
  const int64_t count = w.values.count;
  with_float_type(w.values.type, [&](auto type) {
    launch(quantize_kernel<type()>, blocks_for(count), kThreads, 0, stream,
           source_of<type()>(w.values), WeightMemory(w, 1), count,
           Global<const uint32_t>(extremes, kExtremes), Global<int8_t>(q, count),
           Global<float>(step, 1));
  });
}

void quantize_w_folded(const FloatWeight& w, const float* threshold, int64_t groups,
                       uint32_t* maxima, int8_t* q, float* step, Stream stream) {
  const int64_t channels = w.ci * groups, count = w.values.count;
  const WeightMemory memory(w, groups);
  const Global<const float> s(threshold, w.co);
  clear(maxima, channels * sizeof(uint32_t), stream);
  with_float_type(w.values.type, [&](auto type) {
    if (count > 0) {
      const Grid grid{(w.ci * w.taps + kThreads - 1) / kThreads,
                      (memory.rows_of_group + kRowsOfBlock - 1) / kRowsOfBlock, groups};
      launch(folded_maxima_kernel<type()>, grid, kThreads, 0, stream, source_of<type()>(w.values),
             memory, s, Global<uint32_t>(maxima, channels));
    }
    launch(quantize_folded_kernel<type()>, blocks_for(std::max(count, channels)), kThreads, 0,
           stream, source_of<type()>(w.values), memory, count, channels, s,
           Global<const uint32_t>(maxima, channels), Global<int8_t>(q, count),
           Global<float>(step, channels));
  });
}

void multiply_steps(const float* threshold, int64_t thresholds, const float* w_step, int64_t count,
                    float* steps, Stream stream) {
  if (count == 0) return;
  launch(steps_kernel, blocks_for(count), kThreads, 0, stream,
         Global<const float>(threshold, thresholds), thresholds > 1,
         w_step == nullptr ? Global<const float>() : Global<const float>(w_step, 1), count,
         Global<float>(steps, count));
}

}  // namespace daq_mm::cuda
