// Compute capability 9.0's primitives on the CPU: see hardware_warpgroup.h for what they are and
// emulator_async.cpp for how they are run and checked.
#pragma once

#include "cuda/primitives/emulated.h"
#include "cuda/primitives/tensor_map.h"

#define DAQ_GRID_CONSTANT

namespace daq_mm::cuda {

constexpr bool kWarpgroups = true;

template <typename... P>
bool has_code_for(void (*)(P...), int /*threads*/) { return true; }

// ---- arrival objects ----

class Arrivals {
 public:
  explicit Arrivals(int64_t byte_offset) : offset_(byte_offset) {}
  void set(int count) const { Block::current().set_arrivals(offset_, count); }
  void arrive() const { Block::current().arrive(offset_, 0); }
  void arrive_and_expect(int bytes) const { Block::current().arrive(offset_, bytes); }
  void wait(int parity) const { Block::current().wait_arrivals(offset_, parity); }
  int64_t offset() const { return offset_; }

 private:
  int64_t offset_;
};

inline void publish_arrivals() {}

// ---- copies by the copy engine ----

inline void prefetch_map(const TensorMap&) {}

inline void copy_box_async(const Shared<uint8_t>& to, const TensorMap& map, int column, int row,
                           const Arrivals& arrivals) {
  if (map.is_walk) Block::current().fail("copies a box of a walk");
  emulator::BulkCopy copy{to.checked(0, 16), &map, {column, row}, {}, arrivals.offset()};
  Block::current().copy_bulk(copy);
}

template <int axes>
void copy_walk_async(const Shared<uint8_t>& to, const TensorMap& map, int channel,
                     const int (&position)[3], int image, const int (&offset)[3],
                     const Arrivals& arrivals) {
  if (!map.is_walk || map.walk.axes != axes) Block::current().fail("copies a walk of other axes");
  emulator::BulkCopy copy{to.checked(0, 16),
                          &map,
                          {channel, position[2], position[1], position[0], image},
                          {offset[2], offset[1], offset[0]},
                          arrivals.offset()};
  Block::current().copy_bulk(copy);
}

// ---- products of a warpgroup ----

template <int span>
uint64_t matrix_descriptor(const Shared<uint8_t>& memory, int byte) {
  static_assert(span == 64 || span == 128);
  const auto start = static_cast<uint64_t>(memory.checked(byte, 16));
  return (start >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{8 * span / 16} << 32 |
         uint64_t{span == 128 ? 1 : 2} << 62;
}

inline void publish_stores() { Block::current().publish_stores(); }

template <int tiles>
void begin_products(int32_t (&)[tiles][4]) { Block::current().begin_products(); }
template <int tiles, int operands>
void begin_products(int32_t (&)[tiles][4], uint32_t (&)[operands][4]) {
  Block::current().begin_products();
}
template <typename A, typename B, int tiles>
void multiply_add_async(int32_t (&d)[tiles][4], uint64_t a, uint64_t b) {
  Block::current().product({8 * tiles, std::is_signed_v<A>, std::is_signed_v<B>, a, b, nullptr},
                           &d[0][0]);
}
template <int tiles>
void multiply_add_async(int32_t (&d)[tiles][4], const uint32_t (&a)[4], uint64_t b) {
  Block::current().product({8 * tiles, true, false, 0, b, a}, &d[0][0]);
}
inline void commit_products() { Block::current().commit_products(); }
template <int groups>
void wait_products() { Block::current().wait_products(groups); }
template <int tiles>
void finish_products(int32_t (&)[tiles][4]) { wait_products<0>(); }

}  // namespace daq_mm::cuda
