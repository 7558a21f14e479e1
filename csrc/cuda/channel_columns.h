// How kernels with a value or a result for each channel walk a channels-last tensor.
//
// The tensor is a matrix of `rows` pixels by `channels`. A thread stays in one column of `width`
// channels (kVector, or 1 where the channels are no multiple of it), so that what belongs to a
// channel is in its registers; a block is some columns wide and walks down the rows in steps of the
// whole grid's height. Neighbouring threads read neighbouring memory.
#pragma once

#include <algorithm>
#include <utility>

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
  // This thread's rows: the first one, and from one to the next.
  DAQ_DEVICE int64_t first_row() const { return block_x() * down + thread_index() / across; }
  DAQ_DEVICE int64_t row_step() const { return parts * down; }

  // Calls f(row) for this thread's rows.
  template <typename F>
  DAQ_DEVICE void for_rows(const F& f) const {
    const int64_t step = row_step();
#pragma unroll 2
    for (int64_t row = first_row(); row < rows; row += step) f(row);
  }
};

// A walk down a thread's rows that has the loads of the next `ahead` rows in flight while it uses
// one: memory answers after several hundred cycles, and few warps fit a processor, so each must have
// asked for much. `words_t` is what a row is made of as it lies in memory; load(wanted, row, i, words)
// fills it by load_if, each word by one load: a second one would wait for the first. i is the place of
// the thread's first channel in that row, in values, and all that the walk itself keeps: a caller that
// does without the row has its registers.
//
// The compiler has one counter for all loads that a round of its loop leaves to the next one, so the
// wait is for all rows at once, one time in `ahead` rows.
template <int ahead, typename words_t, typename load_t>
class RowsAhead {
 public:
  // The first loads leave at once: what a kernel prepares before the walk takes time, too.
  DAQ_DEVICE RowsAhead(const ColumnWalk& walk, int64_t channel, const load_t& load)
      : load_(load),
        row_step_(walk.row_step()),
        step_(row_step_ * walk.channels),
        end_(walk.rows * walk.channels),
        row_(walk.first_row()),
        i_(row_ * walk.channels + channel) {
#pragma unroll
    for (int k = 0; k < ahead; ++k) fill(k, words_[k]);
  }
  // Calls use(row, i, words) for this thread's rows, once, in order.
  template <typename use_t>
  DAQ_DEVICE void for_each(const use_t& use) {
    const auto indices = std::make_integer_sequence<int, ahead>();
#pragma unroll 1
    while (use_one_by_one(use, indices)) {
    }
  }

 private:
  // Loads the row that is `after` rows further.
  DAQ_DEVICE void fill(int after, words_t& words) const {
    const int64_t i = i_ + after * step_;
    load_(i < end_, row_ + after * row_step_, i, words);
  }
  // Written out for each index, as words stay in registers only if no index is a variable.
  template <typename use_t, int... k>
  DAQ_DEVICE bool use_one_by_one(const use_t& use, std::integer_sequence<int, k...>) {
    return (... && use_next(use, words_[k]));
  }
  template <typename use_t>
  DAQ_DEVICE bool use_next(const use_t& use, words_t& words) {
    if (i_ >= end_) return false;
    use(row_, i_, words);
    fill(ahead, words);
    row_ += row_step_;
    i_ += step_;
    return true;
  }

  const load_t load_;
  const int64_t row_step_;
  const int64_t step_;
  const int64_t end_;
  int64_t row_;
  int64_t i_;
  words_t words_[ahead];
};

template <int ahead, typename words_t, typename load_t>
DAQ_DEVICE RowsAhead<ahead, words_t, load_t> rows_ahead(const ColumnWalk& walk, int64_t channel,
                                                        const load_t& load) {
  return {walk, channel, load};
}

// Where a thread's k-th value lies among those of its block, so that combine_columns() finds it.
DAQ_DEVICE int column_slot(int k) { return k * Columns::kThreads + thread_index(); }

// Combines what the threads of a block have put in the slots of `width` values, before a barrier,
// in the order of the rows. Calls f(i, value) for each of the block's channels, i counted within the
// block; all threads must take part, and the caller has a barrier before the next use of `values`.
template <int width, typename T, typename combine_t, typename F>
DAQ_DEVICE void combine_columns(const ColumnWalk& walk, const Shared<T>& values,
                                const combine_t& combine, const F& f) {
  for (int i = thread_index(); i < walk.across * width; i += block_size()) {
    const int column = i % walk.across, k = i / walk.across;
    const int first = k * Columns::kThreads + column;
    T total = values.load(first);
    for (int row = 1; row < walk.down; ++row) {
      total = combine(total, values.load(first + row * walk.across));
    }
    f(column * width + k, total);
  }
}

// The same of values in registers; `scratch` is for kThreads * width values.
template <int width, typename T, typename combine_t, typename F>
DAQ_DEVICE void reduce_columns(const ColumnWalk& walk, const Shared<T>& scratch,
                               const T (&values)[width], const combine_t& combine, const F& f) {
#pragma unroll
  for (int k = 0; k < width; ++k) scratch.store(column_slot(k), values[k]);
  barrier();
  combine_columns<width>(walk, scratch, combine, f);
}

}  // namespace daq_mm::cuda
