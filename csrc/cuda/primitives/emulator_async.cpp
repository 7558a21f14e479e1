// The emulator's compute capability 9.0: arrival objects, bulk copies and products of a warpgroup.
//
// Arrivals carry knowledge: who waits for a phase knows of all that those who arrived had done and
// known (`seen`, a vector clock). A byte that a bulk copy wrote may be read by those who know of
// the phase that the copy completed; a byte that a product read may be written by those who know
// that each warp of the warpgroup waited for it.

#include <algorithm>
#include <cstring>

#include "cuda/primitives/emulator.h"

namespace daq_mm::cuda::emulator {
namespace {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kDepth = 32;  // of one product
// The phases of an arrival object count at most so many bytes and arrivals.
constexpr int64_t kMostCount = (1 << 20) - 1;

void join(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

}  // namespace

void Block::reset_async() {
  arrivals_.clear();
  bulk_copies_.clear();
  random_.seed(schedule() + 31u * static_cast<uint64_t>(index_.x));
  std::fill(warpgroups_.begin(), warpgroups_.end(), Warpgroup{});
  const size_t agents = agent_of_arrivals(kMostArrivals);
  for (const auto& thread : fibers_) {
    thread->clock = 1;
    thread->seen.assign(warpgroups_.empty() ? 0 : agents, 0);
    thread->sums.clear();
    thread->products.clear();
    thread->product_group = 0;
    thread->publications = 0;
    thread->begun = false;
  }
  multiplied_ = false;
}

// A barrier: everybody knows what anybody knew.
void Block::join_all() {
  if (arrivals_.empty() && !multiplied_) return;
  std::vector<uint32_t> all = fibers_[0]->seen;
  for (const auto& thread : fibers_) join(all, thread->seen);
  for (const auto& thread : fibers_) thread->seen = all;
}

// ---- arrival objects ----

void Block::set_arrivals(int64_t offset, int count) {
  check_write(offset, 8);
  if (warpgroups_.empty()) fail("arrival objects need a warpgroup, 128 threads, at least");
  if (offset % 8 != 0) fail("an arrival object at a byte that is no multiple of 8");
  if (count < 1 || count > kMostCount) fail("an arrival object for " + std::to_string(count));
  if (arrivals_.size() == kMostArrivals) fail("more arrival objects than the emulator has");
  Arrivals arrivals;
  arrivals.index = static_cast<int>(arrivals_.size());
  arrivals.count = arrivals.pending = count;
  arrivals.brought.assign(fibers_[0]->seen.size(), 0);
  arrivals.known = arrivals.brought;
  arrivals_[offset] = arrivals;
  const Access access = now();
  for (int64_t i = offset; i < offset + 8; ++i) {
    shadow_[i].copied_by = kObject;
    shadow_[i].write = access;
  }
}

Block::Arrivals& Block::arrivals_at(int64_t offset) {
  const auto found = arrivals_.find(offset);
  if (found == arrivals_.end()) fail("uses an arrival object that was not set");
  if (!ordered_before_now(shadow_[offset].write)) {
    fail("race: uses an arrival object that thread " +
         std::to_string(shadow_[offset].write.thread) + " set without a barrier between");
  }
  return found->second;
}

void Block::arrive(int64_t offset, int bytes_expected) {
  Arrivals& arrivals = arrivals_at(offset);
  Thread& thread = *fibers_[thread_];
  arrivals.bytes += bytes_expected;
  if (arrivals.bytes > kMostCount) fail("an arrival object expects more bytes than it can count");
  thread.seen[thread_] = thread.clock++;
  join(arrivals.brought, thread.seen);
  --arrivals.pending;
  complete_if_due(arrivals);
}

void Block::complete_if_due(Arrivals& arrivals) {
  if (arrivals.pending > 0 || arrivals.bytes != 0) return;
  arrivals.pending = arrivals.count;
  ++arrivals.completed;
  arrivals.brought[agent_of_arrivals(arrivals.index)] = arrivals.completed;
  arrivals.known = arrivals.brought;
}

// The phase of the given parity is over: the running one has the other.
bool Block::is_complete(const Thread& thread) {
  const Arrivals& arrivals = arrivals_.at(thread.waits_for);
  return static_cast<int>(arrivals.completed % 2) != thread.parity;
}

void Block::wait_arrivals(int64_t offset, int parity) {
  const Arrivals& arrivals = arrivals_at(offset);
  Thread& thread = *fibers_[thread_];
  thread.waits_for = offset;
  thread.parity = parity;
  if (!is_complete(thread)) wait(State::kWaiting);
  join(thread.seen, arrivals.known);
}

// ---- bulk copies ----

namespace {

struct Box {
  int rows;
  int span;
};

Box box_of(const TensorMap& map) {
  return map.is_walk ? Box{map.walk.pixels, map.walk.span}
                     : Box{map.matrix.box_rows, map.matrix.span};
}

// `count` bytes from byte `first` of a row of `size`, zeros outside of it.
void copy_row(std::byte* to, const std::byte* row, int64_t first, int64_t size, int count) {
  for (int i = 0; i < count; ++i) {
    const bool inside = first + i >= 0 && first + i < size;
    to[i] = inside ? row[first + i] : std::byte{0};
  }
}

void fetch_matrix(const BulkCopy& copy, std::vector<std::byte>& box) {
  const MatrixMapping& m = copy.map->matrix;
  for (int r = 0; r < m.box_rows; ++r) {
    const int64_t row = copy.start[1] + r;
    if (row < 0 || row >= m.rows) continue;
    const auto* at = static_cast<const std::byte*>(m.data) + row * m.columns;
    copy_row(box.data() + int64_t{1} * r * m.span, at, copy.start[0], m.columns, m.span);
  }
}

void fetch_walk(const BulkCopy& copy, std::vector<std::byte>& box) {
  const WalkMapping& m = copy.map->walk;
  int64_t at[3] = {copy.start[3], copy.start[2], copy.start[1]};  // D, H, W
  int64_t image = copy.start[4];
  for (int p = 0; p < m.pixels; ++p) {
    int64_t position = image;
    bool inside = image >= 0 && image < m.images;
    for (int a = 0; a < 3; ++a) {
      const int64_t coordinate = at[a] + copy.offset[2 - a];
      inside = inside && coordinate >= 0 && coordinate < m.size[a];
      position = position * m.size[a] + coordinate;
    }
    if (inside) {
      const auto* pixel = static_cast<const std::byte*>(m.data) + position * m.channels;
      copy_row(box.data() + int64_t{1} * p * m.span, pixel, copy.start[0], m.channels, m.span);
    }
    int a = 2;
    for (; a >= 3 - m.axes; --a) {
      at[a] += m.step[a];
      if (at[a] < m.size[a] + m.upper[a]) break;
      at[a] = m.lower[a];
    }
    if (a < 3 - m.axes) ++image;
  }
}

}  // namespace

void Block::copy_bulk(const BulkCopy& copy) {
  const Box box = box_of(*copy.map);
  if (copy.to % (8 * box.span) != 0) {
    fail("a bulk copy to byte " + std::to_string(copy.to) + "; expected a multiple of eight rows");
  }
  if (copy.map->is_walk) {
    const WalkMapping& m = copy.map->walk;
    for (int a = 3 - m.axes; a < 3; ++a) {
      const int64_t start = copy.start[3 - a], offset = copy.offset[2 - a];
      if (offset < 0 || offset >= (m.axes == 2 ? 256 : 32)) fail("a walk's offset does not fit");
      if (start < m.lower[a] || start >= m.size[a] + m.upper[a]) {
        fail("a walk starts outside of its box");
      }
    }
  }
  arrivals_at(copy.arrivals);
  check_write(copy.to, int64_t{1} * box.rows * box.span);
  for (int64_t i = 0; i < int64_t{1} * box.rows * box.span; ++i) {
    shadow_[copy.to + i].copied_by = thread_;
  }
  bulk_copies_.push_back(copy);
}

// Lands the oldest copy in flight, or one at random; at_random: or none, most times.
bool Block::land_a_bulk_copy(bool at_random) {
  if (bulk_copies_.empty()) return false;
  if (at_random && (schedule() == 0 || random_() % 4 != 0)) return false;
  const size_t which = schedule() == 0 ? 0 : random_() % bulk_copies_.size();
  const BulkCopy copy = bulk_copies_[which];
  bulk_copies_.erase(bulk_copies_.begin() + static_cast<int64_t>(which));
  const Box box = box_of(*copy.map);
  std::vector<std::byte> bytes(static_cast<size_t>(box.rows) * box.span);
  (copy.map->is_walk ? fetch_walk : fetch_matrix)(copy, bytes);
  Arrivals& arrivals = arrivals_.at(copy.arrivals);
  const Access access{epoch_, 0, kEngine, arrivals.index, arrivals.completed + 1};
  for (int i = 0; i < static_cast<int>(bytes.size()); ++i) {
    const int64_t to = copy.to + swizzled_byte(i, box.span);
    shared_[to] = bytes[i];
    shadow_[to] = Shadow{};
    shadow_[to].write = access;
  }
  arrivals.bytes -= static_cast<int64_t>(bytes.size());
  complete_if_due(arrivals);
  return true;
}

// ---- products of a warpgroup ----

void Block::begin_products() { fibers_[thread_]->begun = true; }

void Block::product(const Product& product, int32_t* d) {
  Thread& thread = *fibers_[thread_];
  const int warpgroup = thread_ / kWarpgroup;
  if (warpgroup >= static_cast<int>(warpgroups_.size())) {
    fail("multiplies in a warpgroup of less than four warps");
  }
  if (!thread.begun) fail("multiplies without begin_products() since the last wait");
  thread.product = product;
  thread.d = d;
  if (++warpgroups_[warpgroup].arrived < kWarpgroup) {
    wait(State::kInWarpgroup);
    return;
  }
  warpgroups_[warpgroup].arrived = 0;
  multiply(warpgroup);
  for (int t = warpgroup * kWarpgroup; t < (warpgroup + 1) * kWarpgroup; ++t) {
    fibers_[t]->state = State::kRunnable;
  }
}

// rows x 32 bytes of an operand in shared memory, by its descriptor (PTX ISA, "Matrix Descriptor
// Format"): start and stride between eight rows in units of 16 bytes, the kind of permutation.
void Block::read_operand(uint64_t descriptor, int rows, uint8_t (*bytes)[kDepth], int warpgroup,
                         uint32_t number) {
  const auto start = static_cast<int64_t>(descriptor & 0x3fff) << 4;
  const auto stride = static_cast<int64_t>(descriptor >> 32 & 0x3fff) << 4;
  const auto base = descriptor >> 49 & 7;
  const auto kind = descriptor >> 62;
  if (kind != 1 && kind != 2) fail("a matrix descriptor of rows other than 64 or 128 bytes");
  if (base != 0) fail("a matrix descriptor with a base offset");
  const int span = kind == 1 ? 128 : 64;
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < kDepth; ++k) {
      // The permutation acts on the address, so that matrices must begin at multiples of 8 rows.
      const auto at = static_cast<int>(start + r / 8 * stride + r % 8 * span + k);
      const int64_t byte = swizzled_byte(at, span);
      check_shared_range(byte, 1);
      Shadow& shadow = shadow_[byte];
      check_untouched(shadow, "multiplies shared memory that a copy in flight writes");
      if (shadow.write.epoch == 0) fail("multiplies shared memory that nobody wrote");
      if (!ordered_before_now(shadow.write)) {
        fail("race: multiplies shared memory whose copy it did not wait for");
      }
      if (shadow.write.thread >= 0 &&
          fibers_[shadow.write.thread]->publications == shadow.publications) {
        fail("multiplies shared memory that a thread wrote without publish_stores() afterwards");
      }
      shadow.product[warpgroup] = number;
      bytes[r][k] = static_cast<uint8_t>(shared_[byte]);
    }
  }
}

// With warp w of the warpgroup, group = lane / 4 and member = lane % 4, sum j of a lane is
// D[16 w + group + 8 (j / 2 % 2)][8 (j / 4) + 2 member + j % 2].
void Block::multiply(int warpgroup) {
  const int first = warpgroup * kWarpgroup, self = thread_;
  const Product p = fibers_[self]->product;
  const uint32_t number = ++warpgroups_[warpgroup].products;
  uint8_t a[64][kDepth], b[256][kDepth];
  for (int t = first; t < first + kWarpgroup; ++t) {
    const Product& other = fibers_[t]->product;
    if (other.a != p.a || other.b != p.b || other.columns != p.columns ||
        other.signed_a != p.signed_a || other.signed_b != p.signed_b ||
        (other.registers == nullptr) != (p.registers == nullptr)) {
      fail("multiplies something else than other lanes of its warpgroup");
    }
  }
  for (int warp = 0; warp < 4; ++warp) {  // each must have waited for the operands
    thread_ = first + warp * kWarp;
    if (p.registers == nullptr) read_operand(p.a, 64, a, warpgroup, number);
    read_operand(p.b, p.columns, b, warpgroup, number);
  }
  thread_ = self;
  multiplied_ = true;
  for (int t = first; t < first + kWarpgroup && p.registers != nullptr; ++t) {
    const int row = (t - first) / kWarp * 16 + t % kWarp / 4;
    for (int i = 0; i < 16; ++i) {
      const int r = i / 4;  // register: rows 0-7, 8-15, then the other half of the depth
      const uint32_t word = fibers_[t]->product.registers[r];
      a[row + r % 2 * 8][r / 2 * 16 + t % 4 * 4 + i % 4] = static_cast<uint8_t>(word >> i % 4 * 8);
    }
  }
  const auto value = [](uint8_t byte, bool is_signed) {
    return is_signed ? int32_t{static_cast<int8_t>(byte)} : int32_t{byte};
  };
  int32_t left[64][kDepth], right[256][kDepth];
  for (int r = 0; r < 64; ++r) {
    for (int k = 0; k < kDepth; ++k) left[r][k] = value(a[r][k], p.signed_a);
  }
  for (int c = 0; c < p.columns; ++c) {
    for (int k = 0; k < kDepth; ++k) right[c][k] = value(b[c][k], p.signed_b);
  }
  for (int t = first; t < first + kWarpgroup; ++t) {
    Thread& thread = *fibers_[t];
    const int sums = p.columns / 2, lane = t % kWarp;
    auto found = std::find_if(thread.sums.begin(), thread.sums.end(),
                              [&](const Sums& s) { return s.d == thread.d; });
    if (found == thread.sums.end()) {
      thread.sums.push_back({thread.d, {thread.d, thread.d + sums}, 0});
      found = thread.sums.end() - 1;
      std::fill_n(thread.d, sums, int32_t{0x5bad5bad});  // until the wait
    }
    found->group = thread.product_group;
    InFlight in_flight{thread.product_group, number, thread.product.registers, {}};
    if (p.registers != nullptr) std::copy_n(in_flight.registers, 4, in_flight.held.begin());
    thread.products.push_back(in_flight);
    for (int j = 0; j < sums; ++j) {
      const int32_t* row = left[(t - first) / kWarp * 16 + lane / 4 + j / 2 % 2 * 8];
      const int32_t* column = right[j / 4 * 8 + lane % 4 * 2 + j % 2];
      int32_t sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      int32_t& hidden = found->hidden[j];
      hidden = static_cast<int32_t>(static_cast<uint32_t>(hidden) + static_cast<uint32_t>(sum));
    }
  }
}

void Block::commit_products() { ++fibers_[thread_]->product_group; }

void Block::wait_products(int groups_in_flight) {
  Thread& thread = *fibers_[thread_];
  const int64_t landed = thread.product_group - groups_in_flight;
  // Sums that several groups share appear with the last of them, their operands are free before.
  auto& known = thread.seen[agent_of_warp(thread_ / kWarp)];
  for (const InFlight& p : thread.products) {
    if (p.group >= landed) continue;
    known = std::max(known, p.number);
    if (p.registers != nullptr && !std::equal(p.held.begin(), p.held.end(), p.registers)) {
      fail("changes registers that a product in flight reads");
    }
  }
  std::erase_if(thread.products, [&](const InFlight& p) { return p.group < landed; });
  std::erase_if(thread.sums, [&](const Sums& s) {
    if (s.group >= landed) return false;
    std::copy(s.hidden.begin(), s.hidden.end(), s.d);
    return true;
  });
  thread.begun = false;
}

}  // namespace daq_mm::cuda::emulator
