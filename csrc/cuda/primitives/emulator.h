// Runs a kernel's blocks on the CPU, thread by thread, and checks what the hardware would not.
//
// Each thread of a block is a fiber. It runs until a barrier or a warp-wide operation and waits
// there for the others. Errors, all thrown by launch() as std::runtime_error with the kernel's
// block and thread: an access outside of a buffer or misaligned; a barrier or a warp-wide operation
// that some threads do not reach; lanes of a warp at different operations; shared memory that is
// read before it was written, touched while an asynchronous copy into it is in flight, or accessed
// by two threads without an order between them (a race); copies in flight at a thread's end.
// Compute capability 9.0's asynchronous machinery is in emulator_async.cpp: arrival objects, copies
// by the copy engine, products of a warpgroup. They are late: a copy lands when no thread can go on
// (or at random, by the schedule), a product's sums appear at the wait.
// What it does not see: races in global memory (blocks run one after another), and speed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/primitives/fiber.h"
#include "cuda/primitives/tensor_map.h"
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

// A copy by the copy engine: a box at a place of a tensor map.
struct BulkCopy {
  int64_t to;                     // byte of shared memory
  const TensorMap* map;
  int64_t start[5];               // matrix: column, row; walk: channel, w, h, d, image
  int offset[3] = {0, 0, 0};      // walk: of w, h, d
  int64_t arrivals;               // the arrival object to be told
};

// A product of a warpgroup: sums (64, columns) += A (64, 32) B (32, columns), both by descriptors, or
// A from the lanes' four registers each.
struct Product {
  int columns;
  bool signed_a, signed_b;
  uint64_t a, b;
  const uint32_t* registers;  // of this lane; or null
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

  // Arrival objects ("mbarriers"), by their byte of shared memory.
  void set_arrivals(int64_t offset, int count);
  void arrive(int64_t offset, int bytes_expected);
  void wait_arrivals(int64_t offset, int parity);
  void copy_bulk(const BulkCopy& copy);

  // What this thread wrote to shared memory may be read by products.
  void publish_stores() { ++fibers_[thread_]->publications; }
  // Products of a warpgroup, between begin_products() and wait_products(). d: this lane's sums.
  void begin_products();
  void product(const Product& product, int32_t* d);
  void commit_products();
  void wait_products(int groups_in_flight);

 private:
  enum class State { kRunnable, kAtBarrier, kInWarp, kInWarpgroup, kWaiting, kDone };

  struct Copy {
    int64_t to;
    const std::byte* from;
    int64_t size;
    int64_t group;
  };

  // Sums of products in flight: `hidden` replaces what is at d when they are waited for.
  struct Sums {
    int32_t* d;
    std::vector<int32_t> hidden;
    int64_t group;  // of the latest product
  };

  // A product in flight, and what this lane's registers of A held, if they are an operand.
  struct InFlight {
    int64_t group;
    uint32_t number;
    const uint32_t* registers;
    std::array<uint32_t, 4> held;
  };

  struct Thread {
    Fiber fiber;
    State state = State::kDone;
    std::vector<Copy> copies;
    int64_t group = 0;  // of the copies that come next

    int64_t waits_for = 0;  // kWaiting: the arrival object and its parity
    int parity = 0;
    uint32_t clock = 1;               // counts this thread's arrivals
    std::vector<uint32_t> seen;       // by agent: what is known to have happened
    Product product{};                // kInWarpgroup
    int32_t* d = nullptr;
    std::vector<Sums> sums;
    std::vector<InFlight> products;
    uint32_t publications = 0;
    int64_t product_group = 0;
    bool begun = false;
  };

  // Whose progress arrivals make known, by index into `seen`: threads (their clocks), then warps
  // (the number of their warpgroup's last product that they waited for), then arrival objects
  // (phases completed).
  size_t agent_of_warp(int warp) const { return static_cast<size_t>(threads_ + warp); }
  size_t agent_of_arrivals(int index) const {
    return static_cast<size_t>(threads_ + threads_ / kWarp + index);
  }
  static constexpr int kMostArrivals = 32;
  static constexpr int kMostWarpgroups = 4;

  struct Arrivals {
    int index = 0;
    int count = 0;
    int pending = 0;
    int64_t bytes = 0;       // expected and not yet come
    uint32_t completed = 0;  // phases
    std::vector<uint32_t> brought;  // by those who arrive
    std::vector<uint32_t> known;    // when the last phase was completed
  };

  struct Warpgroup {
    int arrived = 0;
    uint32_t products = 0;
  };

  struct Warp {
    int arrived = 0;
    Collective operation{};
    uint32_t epoch = 1;  // counts warp barriers
    Lanes in;
    Lanes out;
  };

  // Who accessed a byte last, and when: barriers, warp barriers and arrivals order accesses.
  struct Access {
    uint32_t epoch = 0;
    uint32_t warp_epoch = 0;
    int32_t thread = 0;  // kSeveral: more than one of the warp; kEngine: a bulk copy
    int32_t warp = 0;    // kSeveral: more than one of the block; kEngine: the arrivals' index
    uint32_t clock = 0;  // the thread's; kEngine: the phase
  };
  struct Shadow {
    Access read;
    Access write;
    uint32_t publications = 0;    // the writing thread's, before it wrote
    int32_t copied_by = kNobody;  // a copy into the byte is in flight, or it is no memory
    uint32_t product[kMostWarpgroups] = {};  // the last product of each warpgroup that read it
  };
  static constexpr int32_t kSeveral = -1;
  static constexpr int32_t kEngine = -2;
  static constexpr int32_t kNobody = -1;
  static constexpr int32_t kObject = -3;  // an arrival object lies there

  static void enter(void* block);
  void wait(State state);
  void resume(int thread);
  bool run_warp(int warp);
  void fail_if_stuck();
  void finish_barrier_or_fail();
  bool ordered_before_now(const Access& access) const;
  Access now() const;
  void check_shared_range(int64_t offset, int64_t size) const;
  void check_write(int64_t offset, int64_t size);
  void land(const Copy& copy);
  bool arrive(Collective operation);
  std::string stuck() const;

  Arrivals& arrivals_at(int64_t offset);
  bool is_complete(const Thread& thread);
  void complete_if_due(Arrivals& arrivals);
  void check_untouched(const Shadow& shadow, const char* what) const;
  bool land_a_bulk_copy(bool at_random);
  void multiply(int warpgroup);
  void read_operand(uint64_t descriptor, int rows, uint8_t (*bytes)[32], int warpgroup,
                    uint32_t number);
  void reset_async();
  void join_all();

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
  std::map<int64_t, Arrivals> arrivals_;
  std::vector<BulkCopy> bulk_copies_;  // in flight
  std::vector<Warpgroup> warpgroups_;
  bool multiplied_ = false;  // a warpgroup has
  std::mt19937_64 random_;
};

// Runs body() as every thread of every block. Blocks run one after another, in an order and with
// an order of warps and lanes that follow from set_schedule().
void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void()>& body);

// 0: ascending. Anything else seeds a random order of blocks, warps and lanes.
void set_schedule(uint64_t seed);
uint64_t schedule();

// What multiprocessors() and has_warpgroups() return; the latter is compute capability 9.0.
void set_multiprocessors(int count, int64_t shared_bytes);
void set_warpgroups(bool present);

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
