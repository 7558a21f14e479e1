// The scheduler, the shared memory and its race detector: see emulator.h.

#include "cuda/primitives/emulator.h"

#include "cuda/primitives/emulator_host.h"
#include "cuda/primitives/multiprocessors.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>

namespace daq_mm::cuda::emulator {
namespace {

thread_local Block* current_block = nullptr;
uint64_t schedule_seed = 0;
Multiprocessors multiprocessors_present{4, 228 << 10};
bool warpgroups_present = false;

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
void set_multiprocessors(int count, int64_t shared_bytes) {
  multiprocessors_present = {count, shared_bytes};
}
void set_warpgroups(bool present) { warpgroups_present = present; }

Block::Block(int threads, int64_t shared_bytes)
    : threads_(threads), warps_(threads / kWarp), shared_(shared_bytes), shadow_(shared_bytes),
      warpgroups_(std::min(threads / (4 * kWarp), kMostWarpgroups)) {
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
    const Thread& thread = *block.fibers_[block.thread_];
    if (!thread.copies.empty()) block.fail("ended with asynchronous copies in flight");
    if (!thread.sums.empty()) block.fail("ended with products in flight");
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

// Runs the lanes until each waits for something that another warp or a copy must do, or is done;
// whether any could run.
bool Block::run_warp(int warp) {
  const uint64_t salt = (static_cast<uint64_t>(index_.x) << 20) + epoch_ * 64u + warp;
  const std::vector<int64_t> lanes = order(kWarp, salt);
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (int64_t lane : lanes) {
      const int thread = warp * kWarp + static_cast<int>(lane);
      Thread& t = *fibers_[thread];
      if (t.state == State::kWaiting && is_complete(t)) t.state = State::kRunnable;
      if (t.state != State::kRunnable) continue;
      progress = any = true;
      resume(thread);
    }
  }
  return any;
}

// Nobody can run and no copy is in flight: all must be done or at a barrier.
void Block::fail_if_stuck() {
  for (thread_ = 0; thread_ < threads_; ++thread_) {
    switch (fibers_[thread_]->state) {
      case State::kInWarp:
        fail(std::string("waits in ") + name(warps_[thread_ / kWarp].operation) +
             " for lanes that do not come; " + stuck());
      case State::kInWarpgroup:
        fail("waits in a product for lanes of its warpgroup that do not come; " + stuck());
      case State::kWaiting:
        fail("waits for arrivals that do not come; " + stuck());
      default: break;
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
  join_all();
}

std::string Block::stuck() const {
  int at_barrier = 0, in_warp = 0, waiting = 0, done = 0;
  for (const auto& thread : fibers_) {
    at_barrier += thread->state == State::kAtBarrier;
    in_warp += thread->state == State::kInWarp || thread->state == State::kInWarpgroup;
    waiting += thread->state == State::kWaiting;
    done += thread->state == State::kDone;
  }
  std::ostringstream s;
  s << at_barrier << " threads at a barrier, " << in_warp << " in a warp-wide operation, "
    << waiting << " wait for arrivals, " << done << " ended, of " << threads_;
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
  reset_async();
  struct Current {
    explicit Current(Block* block) { current_block = block; }
    ~Current() { current_block = nullptr; }
  } current(this);
  const auto done = [](const auto& thread) { return thread->state == State::kDone; };
  while (!std::all_of(fibers_.begin(), fibers_.end(), done)) {
    bool progress = false;
    for (int64_t warp : order(threads_ / kWarp, index.x + 7919u * epoch_)) {
      progress |= run_warp(static_cast<int>(warp));
      if (land_a_bulk_copy(true)) progress = true;
    }
    if (progress || land_a_bulk_copy(false)) continue;
    fail_if_stuck();
    finish_barrier_or_fail();
  }
  if (!bulk_copies_.empty()) fail("ended with bulk copies in flight");
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
  return {epoch_, warps_[warp].epoch, thread_, warp, fibers_[thread_]->clock};
}

// Whether a barrier lies between the access and this moment, or it was this thread's own, or an
// arrival after it has been waited for.
bool Block::ordered_before_now(const Access& access) const {
  const std::vector<uint32_t>& seen = fibers_[thread_]->seen;
  if (access.thread == kEngine) return seen[agent_of_arrivals(access.warp)] >= access.clock;
  if (access.epoch != epoch_ || access.thread == thread_) return true;
  if (access.thread >= 0 && !seen.empty() && seen[access.thread] >= access.clock) return true;
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
    check_untouched(shadow, "reads shared memory that a copy in flight writes");
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
    check_untouched(shadow, "writes shared memory that a copy in flight writes too");
    if (!ordered_before_now(shadow.write)) {
      fail("race: writes shared memory that thread " + std::to_string(shadow.write.thread) +
           " wrote without a barrier between");
    }
    if (!ordered_before_now(shadow.read)) {
      fail("race: writes shared memory that other threads read without a barrier between");
    }
    for (int group = 0; group < static_cast<int>(warpgroups_.size()); ++group) {
      if (shadow.product[group] == 0) continue;
      for (int warp = 4 * group; warp < 4 * group + 4; ++warp) {
        if (fibers_[thread_]->seen[agent_of_warp(warp)] < shadow.product[group]) {
          fail("writes shared memory that a product of warpgroup " + std::to_string(group) +
               " reads, with no arrival since the wait for it");
        }
      }
    }
  }
}

void Block::check_untouched(const Shadow& shadow, const char* what) const {
  if (shadow.copied_by == kObject) fail("accesses an arrival object as memory");
  if (shadow.copied_by != kNobody) fail(what);
}

std::byte* Block::shared_for_write(int64_t offset, int64_t size) {
  check_write(offset, size);
  const Access access = now();
  for (int64_t i = offset; i < offset + size; ++i) {
    shadow_[i].write = access;
    shadow_[i].publications = fibers_[thread_]->publications;
  }
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
    shadow_[i].copied_by = kNobody;
    shadow_[i].write = access;
    shadow_[i].publications = fibers_[thread_]->publications;
  }
  std::memcpy(shared_.data() + copy.to, copy.from, copy.size);
}

// ---- grids ----

void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void()>& body) {
  if (threads < kWarp || threads > 1024 || threads % kWarp != 0) {
    throw std::runtime_error("launch refused: " + std::to_string(threads) +
                             " threads a block; expected a multiple of 32 up to 1024");
  }
  const int64_t limit = (warpgroups_present ? 227 : 64) * 1024;  // capability 9.0; the least, 7.5
  if (shared_bytes > limit) {
    throw std::runtime_error("launch refused: " + std::to_string(shared_bytes) +
                             " bytes of shared memory; " +
                             (warpgroups_present ? "sm_90" : "sm_75") + " has " +
                             std::to_string(limit));
  }
  log_launch({grid, threads, shared_bytes});
  Block block(threads, shared_bytes);
  for (int64_t i : order(grid.x * grid.y * grid.z, 1)) {
    const Index index{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    block.run(index, {grid.x, grid.y, grid.z}, body);
  }
}

}  // namespace daq_mm::cuda::emulator

namespace daq_mm::cuda {

Multiprocessors multiprocessors() { return emulator::multiprocessors_present; }
bool has_warpgroups() { return emulator::warpgroups_present; }

}  // namespace daq_mm::cuda
