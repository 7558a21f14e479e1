// Runs a kernel's blocks on the CPU, thread by thread, and checks what the hardware would not.
//
// Each thread of a block is a fiber. It runs until a barrier or a warp-wide operation and waits
// there for the others. Errors, all thrown by launch() as std::runtime_error with the kernel's
// block and thread: an access outside of a buffer or misaligned; a barrier or a warp-wide operation
// that some threads do not reach; lanes of a warp at different operations; shared memory that is
// read before it was written, touched while an asynchronous copy into it is in flight, or accessed
// by two threads without an order between them (a race); copies in flight at a thread's end.
// What it does not see: races in global memory (blocks run one after another), and speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/primitives/fiber.h"
#include "cuda/primitives/types.h"

namespace daq_mm::cuda::emulator {

struct Index {
  int64_t x = 0;
  int64_t y = 0;
  int64_t z = 0;
};

// What a warp's lanes do together.
enum class Collective : int {
  kShuffle,
  kShuffleXor,
  kBallot,
  kLoadMatrices,
  kLoadMatricesTransposed,
  kMultiplyAdd,
  kWarpBarrier,
};

// A block in execution; one at a time a CPU thread.
class Block {
 public:
  // What lane l of a warp brings to a warp-wide operation and takes from it.
  static constexpr int kLaneBytes = 48;
  struct alignas(16) Lanes {
    std::byte of[kWarp][kLaneBytes];
  };

  Block(int threads, int64_t shared_bytes);
  ~Block();

  // Runs body() as every thread of the block at `index`.
  void run(Index index, Index grid, const std::function<void()>& body);

  static Block& current();

  int thread() const { return thread_; }
  int threads() const { return threads_; }
  const Index& index() const { return index_; }
  const Index& grid() const { return grid_; }

  [[noreturn]] void fail(const std::string& what) const;

  // ---- called by the running thread ----

  void barrier();
  // in -> the slot of this lane; compute(in, out) by the last lane to come; out <- the slot.
  template <typename in_t, typename out_t, typename F>
  out_t together(Collective operation, const in_t& in, F compute);

  // The bytes [offset, offset + size) of shared memory, recorded as read or written.
  std::byte* shared_for_read(int64_t offset, int64_t size);
  std::byte* shared_for_write(int64_t offset, int64_t size);
  // For atomics, which need no order among themselves.
  std::byte* shared_for_atomic(int64_t offset, int64_t size);
  int64_t shared_bytes() const { return static_cast<int64_t>(shared_.size()); }

  void copy_async(int64_t shared_offset, const std::byte* from, int64_t size);
  void commit_copies();
  void wait_copies(int groups_in_flight);

 private:
  enum class State { kRunnable, kAtBarrier, kInWarp, kDone };

  struct Copy {
    int64_t to;
    const std::byte* from;
    int64_t size;
    int64_t group;
  };

  struct Thread {
    Fiber fiber;
    State state = State::kDone;
    std::vector<Copy> copies;
    int64_t group = 0;  // of the copies that come next
  };

  struct Warp {
    int arrived = 0;
    Collective operation{};
    uint32_t epoch = 1;  // counts warp barriers
    Lanes in;
    Lanes out;
  };

  // Who accessed a byte last, and when: block barriers and warp barriers order accesses.
  struct Access {
    uint32_t epoch = 0;
    uint32_t warp_epoch = 0;
    int32_t thread = 0;  // kSeveral: more than one of the warp
    int32_t warp = 0;    // kSeveral: more than one of the block
  };
  struct Shadow {
    Access read;
    Access write;
    int32_t copied_by = -1;  // a copy into the byte is in flight
  };
  static constexpr int32_t kSeveral = -1;

  static void enter(void* block);
  void wait(State state);
  void resume(int thread);
  void run_warp(int warp);
  void finish_barrier_or_fail();
  bool ordered_before_now(const Access& access) const;
  Access now() const;
  void check_shared_range(int64_t offset, int64_t size) const;
  void check_write(int64_t offset, int64_t size);
  void land(const Copy& copy);
  bool arrive(Collective operation);
  std::string stuck() const;

  int threads_;
  int thread_ = 0;
  Index index_;
  Index grid_;
  uint32_t epoch_ = 1;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  std::vector<std::unique_ptr<Thread>> fibers_;
  std::vector<Warp> warps_;
  std::vector<std::byte> shared_;
  std::vector<Shadow> shadow_;
};

// Runs body() as every thread of every block. Blocks run one after another, in an order and with
// an order of warps and lanes that follow from set_schedule().
void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void()>& body);

// 0: ascending. Anything else seeds a random order of blocks, warps and lanes.
void set_schedule(uint64_t seed);
uint64_t schedule();

// What multiprocessors() returns.
void set_multiprocessors(int count);

template <typename in_t, typename out_t, typename F>
out_t Block::together(Collective operation, const in_t& in, F compute) {
  static_assert(sizeof(in_t) <= kLaneBytes && sizeof(out_t) <= kLaneBytes);
  Warp& warp = warps_[thread_ / kWarp];
  const int lane = thread_ % kWarp;
  *reinterpret_cast<in_t*>(warp.in.of[lane]) = in;
  if (arrive(operation)) {
    in_t ins[kWarp];
    out_t outs[kWarp];
    for (int l = 0; l < kWarp; ++l) ins[l] = *reinterpret_cast<in_t*>(warp.in.of[l]);
    compute(ins, outs);
    for (int l = 0; l < kWarp; ++l) *reinterpret_cast<out_t*>(warp.out.of[l]) = outs[l];
  } else {
    wait(State::kInWarp);
  }
  return *reinterpret_cast<out_t*>(warp.out.of[lane]);
}

}  // namespace daq_mm::cuda::emulator
