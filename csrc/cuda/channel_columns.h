// How kernels with a value or a result for each channel walk a channels-last tensor.
//
// The tensor is a matrix of `rows` pixels by `channels`. A thread stays in one column of `width`
// channels (kVector, or 1 where the channels are no multiple of it), so that what belongs to a
// channel is in its registers; a block is some columns wide and walks down the rows in steps of the
// whole grid's height. Neighbouring threads read neighbouring memory.
#pragma once

#include <algorithm>

#include "cuda/float_source.h"

namespace daq_mm::cuda {

struct Columns {
  static constexpr int kThreads = 256;
  // Columns of a block at most: memory read in runs of 512 bytes and more, and few channels, so
  // that what a block leaves of each channel is little beside what it reads.
  static constexpr int kAcross = kWarp;
  // Rows that a thread reads at least, if there are so many: its set-up is shared among them.
  static constexpr int kRowsOfThread = 4;

  int64_t rows;
  int64_t channels;
  int width;
  int across;     // columns of a block
  int down;       // rows that a block reads at a time; threads beyond across * down idle
  int64_t parts;  // blocks down
  Grid grid;

  // `parts` depends on the size alone, so that sums over parts do not depend on the device.
  Columns(int64_t rows_, int64_t channels_, bool vectors, int64_t most_parts)
      : rows(rows_), channels(channels_), width(vectors ? kVector : 1) {
    const int64_t columns = (channels + width - 1) / width;
    across = static_cast<int>(std::min<int64_t>(columns, kAcross));
    down = kThreads / across;
    grid.y = (columns + across - 1) / across;
    const int64_t most = std::max<int64_t>(most_parts / grid.y, 1);
    parts = std::clamp<int64_t>(rows / (int64_t{kRowsOfThread} * down), 1, most);
    grid.x = parts;
  }
};

// The part of a `Columns` that device code reads.
struct ColumnWalk {
  int64_t rows;
  int64_t channels;
  int across;
  int down;
  int64_t parts;  // blocks down that take part; a kernel may lower it

  explicit ColumnWalk(const Columns& c)
      : rows(c.rows), channels(c.channels), across(c.across), down(c.down), parts(c.parts) {}
  // Of a block that walks in another way, for reduce_columns.
  DAQ_DEVICE ColumnWalk(int across_, int down_)
      : rows(0), channels(0), across(across_), down(down_), parts(1) {}

  // The first channel of this thread, or `channels` and more for a thread that idles.
  template <int width>
  DAQ_DEVICE int64_t channel() const {
    if (thread_index() >= across * down) return channels;
    return (block_y() * across + thread_index() % across) * width;
  }
  // Calls f(row) for this thread's rows.
  template <typename F>
  DAQ_DEVICE void for_rows(const F& f) const {
    const int64_t step = parts * down;
#pragma unroll 2
    for (int64_t row = block_x() * down + thread_index() / across; row < rows; row += step) {
      f(row);
    }
  }
};

// Reduces over the rows of a block: thread t's `width` values of a column become, for each of the
// block's channels, the combination of all `down` of them in their order. Calls f(i, value) for
// each channel, i counted within the block; all threads must take part. `scratch` holds
// kThreads * width values; the caller has a barrier before its next use.
template <int width, typename T, typename combine_t, typename F>
DAQ_DEVICE void reduce_columns(const ColumnWalk& walk, const Shared<T>& scratch,
                               const T (&values)[width], const combine_t& combine, const F& f) {
  const int block_channels = walk.across * width;
  if (thread_index() < walk.across * walk.down) {
    const int row = thread_index() / walk.across, column = thread_index() % walk.across;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      scratch.store(row * block_channels + k * walk.across + column, values[k]);
    }
  }
  barrier();
  for (int i = thread_index(); i < block_channels; i += block_size()) {
    T total = scratch.load(i);
    for (int row = 1; row < walk.down; ++row) {
      total = combine(total, scratch.load(row * block_channels + i));
    }
    // Stored by (k, column), so that neighbouring threads use neighbouring banks.
    f(i % walk.across * width + i / walk.across, total);
  }
}

}  // namespace daq_mm::cuda
