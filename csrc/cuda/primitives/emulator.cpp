// The scheduler, the shared memory and its race detector: see emulator.h.

#include "cuda/primitives/emulator.h"

#include "cuda/primitives/multiprocessors.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>

namespace daq_mm::cuda::emulator {
namespace {

thread_local Block* current_block = nullptr;
uint64_t schedule_seed = 0;
int multiprocessor_count = 4;

const char* name(Collective operation) {
  switch (operation) {
    case Collective::kShuffle: return "shuffle";
    case Collective::kShuffleXor: return "shuffle_xor";
    case Collective::kBallot: return "ballot";
    case Collective::kLoadMatrices: return "load_matrices";
    case Collective::kLoadMatricesTransposed: return "load_matrices_transposed";
    case Collective::kMultiplyAdd: return "multiply_add";
    case Collective::kWarpBarrier: return "warp_barrier";
  }
  return "?";
}

// 0..count-1 in the schedule's order; `salt` tells blocks apart.
std::vector<int64_t> order(int64_t count, uint64_t salt) {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  if (schedule_seed != 0) {
    std::mt19937_64 random(schedule_seed * 0x9e3779b97f4a7c15u + salt);
    std::shuffle(ids.begin(), ids.end(), random);
  }
  return ids;
}

}  // namespace

void set_schedule(uint64_t seed) { schedule_seed = seed; }
uint64_t schedule() { return schedule_seed; }
void set_multiprocessors(int count) { multiprocessor_count = count; }

Block::Block(int threads, int64_t shared_bytes)
    : threads_(threads), warps_(threads / kWarp), shared_(shared_bytes), shadow_(shared_bytes) {
  for (int t = 0; t < threads; ++t) fibers_.push_back(std::make_unique<Thread>());
}

Block::~Block() = default;

Block& Block::current() {
  if (current_block == nullptr) throw std::logic_error("a primitive was called outside a kernel");
  return *current_block;
}

void Block::fail(const std::string& what) const {
  std::ostringstream s;
  s << "block (" << index_.x << ", " << index_.y << ", " << index_.z << "), thread " << thread_
    << ": " << what;
  throw std::runtime_error(s.str());
}

// ---- the scheduler ----

void Block::enter(void* pointer) {
  auto& block = *static_cast<Block*>(pointer);
  try {
    (*block.body_)();
    if (!block.fibers_[block.thread_]->copies.empty()) {
      block.fail("ended with asynchronous copies in flight");
    }
  } catch (...) {
    block.error_ = std::current_exception();
  }
  block.wait(State::kDone);
}

void Block::wait(State state) {
  Thread& thread = *fibers_[thread_];
  thread.state = state;
  thread.fiber.suspend();
}

void Block::resume(int thread) {
  thread_ = thread;
  fibers_[thread]->fiber.resume();
  if (error_) std::rethrow_exception(error_);
}

// Runs the lanes until each is at a barrier or done.
void Block::run_warp(int warp) {
  const uint64_t salt = (static_cast<uint64_t>(index_.x) << 20) + epoch_ * 64u + warp;
  const std::vector<int64_t> lanes = order(kWarp, salt);
  for (bool progress = true; progress;) {
    progress = false;
    for (int64_t lane : lanes) {
      const int thread = warp * kWarp + static_cast<int>(lane);
      if (fibers_[thread]->state != State::kRunnable) continue;
      progress = true;
      resume(thread);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    thread_ = warp * kWarp + lane;
    if (fibers_[thread_]->state == State::kInWarp) {
      fail(std::string("waits in ") + name(warps_[warp].operation) +
           " for lanes that do not come; " + stuck());
    }
  }
}

void Block::finish_barrier_or_fail() {
  int waiting = 0;
  for (const auto& thread : fibers_) waiting += thread->state == State::kAtBarrier;
  if (waiting != 0 && waiting != threads_) {
    fail("divergence at a barrier; " + stuck());
  }
  for (const auto& thread : fibers_) {
    if (thread->state == State::kAtBarrier) thread->state = State::kRunnable;
  }
  ++epoch_;
}

std::string Block::stuck() const {
  int at_barrier = 0, in_warp = 0, done = 0;
  for (const auto& thread : fibers_) {
    at_barrier += thread->state == State::kAtBarrier;
    in_warp += thread->state == State::kInWarp;
    done += thread->state == State::kDone;
  }
  std::ostringstream s;
  s << at_barrier << " threads at a barrier, " << in_warp << " in a warp-wide operation, " << done
    << " ended, of " << threads_;
  return s.str();
}

void Block::run(Index index, Index grid, const std::function<void()>& body) {
  index_ = index;
  grid_ = grid;
  body_ = &body;
  error_ = nullptr;
  epoch_ = 1;
  std::fill(shared_.begin(), shared_.end(), std::byte{0xcd});
  std::fill(shadow_.begin(), shadow_.end(), Shadow{});
  for (Warp& warp : warps_) {
    warp.arrived = 0;
    warp.epoch = 1;
  }
  for (const auto& thread : fibers_) {
    thread->copies.clear();
    thread->group = 0;
    thread->state = State::kRunnable;
    thread->fiber.start(&Block::enter, this);
  }
  struct Current {
    explicit Current(Block* block) { current_block = block; }
    ~Current() { current_block = nullptr; }
  } current(this);
  const auto done = [](const auto& thread) { return thread->state == State::kDone; };
  while (!std::all_of(fibers_.begin(), fibers_.end(), done)) {
    for (int64_t warp : order(threads_ / kWarp, index.x + 7919u * epoch_)) {
      run_warp(static_cast<int>(warp));
    }
    finish_barrier_or_fail();
  }
}

void Block::barrier() { wait(State::kAtBarrier); }

// True for the last lane, after which the others may go on.
bool Block::arrive(Collective operation) {
  Warp& warp = warps_[thread_ / kWarp];
  if (warp.arrived == 0) {
    warp.operation = operation;
  } else if (warp.operation != operation) {
    fail(std::string("calls ") + name(operation) + " while other lanes of its warp are in " +
         name(warp.operation));
  }
  if (++warp.arrived < kWarp) return false;
  warp.arrived = 0;
  if (operation == Collective::kWarpBarrier) ++warp.epoch;
  const int first = thread_ / kWarp * kWarp;
  for (int lane = 0; lane < kWarp; ++lane) fibers_[first + lane]->state = State::kRunnable;
  return true;
}

// ---- shared memory ----

Block::Access Block::now() const {
  const int32_t warp = thread_ / kWarp;
  return {epoch_, warps_[warp].epoch, thread_, warp};
}

// Whether a barrier lies between the access and this moment, or it was this thread's own.
bool Block::ordered_before_now(const Access& access) const {
  if (access.epoch != epoch_ || access.thread == thread_) return true;
  const int32_t warp = thread_ / kWarp;
  return access.warp == warp && access.warp_epoch < warps_[warp].epoch;
}

void Block::check_shared_range(int64_t offset, int64_t size) const {
  if (offset < 0 || offset + size > shared_bytes()) {
    std::ostringstream s;
    s << "access of " << size << " bytes at byte " << offset << " of " << shared_bytes()
      << " bytes of shared memory";
    fail(s.str());
  }
}

std::byte* Block::shared_for_read(int64_t offset, int64_t size) {
  check_shared_range(offset, size);
  const Access access = now();
  for (int64_t i = offset; i < offset + size; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.copied_by >= 0) fail("reads shared memory that a copy in flight writes");
    if (shadow.write.epoch == 0) fail("reads shared memory that nobody wrote");
    if (!ordered_before_now(shadow.write)) {
      fail("race: reads shared memory that thread " + std::to_string(shadow.write.thread) +
           " wrote without a barrier between");
    }
    Access& read = shadow.read;
    if (read.epoch != epoch_ || read.thread == thread_) {
      read = access;
    } else {
      if (read.warp != access.warp) read.warp = kSeveral;
      read.thread = kSeveral;
      read.warp_epoch = access.warp_epoch;
    }
  }
  return shared_.data() + offset;
}

void Block::check_write(int64_t offset, int64_t size) {
  check_shared_range(offset, size);
  for (int64_t i = offset; i < offset + size; ++i) {
    const Shadow& shadow = shadow_[i];
    if (shadow.copied_by >= 0) fail("writes shared memory that a copy in flight writes too");
    if (!ordered_before_now(shadow.write)) {
      fail("race: writes shared memory that thread " + std::to_string(shadow.write.thread) +
           " wrote without a barrier between");
    }
    if (!ordered_before_now(shadow.read)) {
      fail("race: writes shared memory that other threads read without a barrier between");
    }
  }
}

std::byte* Block::shared_for_write(int64_t offset, int64_t size) {
  check_write(offset, size);
  const Access access = now();
  for (int64_t i = offset; i < offset + size; ++i) shadow_[i].write = access;
  return shared_.data() + offset;
}

std::byte* Block::shared_for_atomic(int64_t offset, int64_t size) {
  check_shared_range(offset, size);
  for (int64_t i = offset; i < offset + size; ++i) {
    if (shadow_[i].write.epoch == 0) fail("an atomic on shared memory that nobody wrote");
    if (!ordered_before_now(shadow_[i].write)) {
      fail("race: an atomic on shared memory written without a barrier between");
    }
  }
  return shared_.data() + offset;
}

// ---- asynchronous copies ----

void Block::copy_async(int64_t shared_offset, const std::byte* from, int64_t size) {
  check_write(shared_offset, size);
  Thread& thread = *fibers_[thread_];
  for (int64_t i = shared_offset; i < shared_offset + size; ++i) shadow_[i].copied_by = thread_;
  thread.copies.push_back({shared_offset, from, size, thread.group});
}

void Block::commit_copies() { ++fibers_[thread_]->group; }

void Block::wait_copies(int groups_in_flight) {
  Thread& thread = *fibers_[thread_];
  const int64_t landed = thread.group - groups_in_flight;  // groups below this one
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (copy.group >= landed) return false;
    land(copy);
    return true;
  });
}

void Block::land(const Copy& copy) {
  const Access access = now();
  for (int64_t i = copy.to; i < copy.to + copy.size; ++i) {
    shadow_[i].copied_by = -1;
    shadow_[i].write = access;
  }
  std::memcpy(shared_.data() + copy.to, copy.from, copy.size);
}

// ---- grids ----

void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void()>& body) {
  if (threads < kWarp || threads > 1024 || threads % kWarp != 0) {
    throw std::runtime_error("launch refused: " + std::to_string(threads) +
                             " threads a block; expected a multiple of 32 up to 1024");
  }
  constexpr int64_t kSmallestLimit = 64 * 1024;  // compute capability 7.5
  if (shared_bytes > kSmallestLimit) {
    throw std::runtime_error("launch refused: " + std::to_string(shared_bytes) +
                             " bytes of shared memory; sm_75 has 65536");
  }
  Block block(threads, shared_bytes);
  for (int64_t i : order(grid.x * grid.y * grid.z, 1)) {
    const Index index{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    block.run(index, {grid.x, grid.y, grid.z}, body);
  }
}

}  // namespace daq_mm::cuda::emulator

namespace daq_mm::cuda {

int multiprocessors() { return emulator::multiprocessor_count; }

}  // namespace daq_mm::cuda
