// The primitives that compute capability 9.0 alone has (sm_90a): arrival objects ("mbarriers"), the
// copy engine ("TMA"), products of a warpgroup ("wgmma"). A kernel that uses them compiles for
// other architectures with an empty body: `if constexpr (kWarpgroups)`, which is false there.
#pragma once

#include "cuda/primitives/hardware.h"
#include "cuda/primitives/tensor_map.h"

// A kernel's parameter that stays where the launch put it, so that its address can be given to the
// copy engine: DAQ_GRID_CONSTANT const arguments_t a.
#define DAQ_GRID_CONSTANT __grid_constant__

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DAQ_WARPGROUPS 1
#else
#define DAQ_WARPGROUPS 0
#endif

namespace daq_mm::cuda {

constexpr bool kWarpgroups = DAQ_WARPGROUPS != 0;

// Whether the module has this kernel's body for the current device. A kernel of so many threads
// that says DAQ_KERNEL(kWarpgroups ? threads : 32, ...) is told from its empty form by its bound.
template <typename... P>
bool has_code_for(void (*kernel)(P...), int threads) {
  cudaFuncAttributes attributes;
  C10_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return attributes.maxThreadsPerBlock >= threads;
}

// ---- arrival objects ----

// 8 bytes of shared memory that count phases: one is over when `count` threads have arrived and the
// bytes that they expect have come. What those who arrived did before is seen by who waited.
class Arrivals {
 public:
  DAQ_DEVICE explicit Arrivals(int64_t byte_offset)
      : address_(detail::shared_address(Shared<uint8_t>(byte_offset, 8).at(0))) {}

  // By one thread, before publish_arrivals() and a barrier().
  DAQ_DEVICE void set(int count) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_), "r"(count) : "memory");
  }
  DAQ_DEVICE void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_) : "memory");
  }
  DAQ_DEVICE void arrive_and_expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_),
                 "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity is over; the first one has 0. Before it, 1 counts as over.
  DAQ_DEVICE void wait(int parity) const {
    uint32_t done;
    do {
      asm volatile(
          "{\n"
          "  .reg .pred p;\n"
          "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "  selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(done)
          : "r"(address_), "r"(parity)
          : "memory");
    } while (done == 0);
  }
  DAQ_DEVICE uint32_t address() const { return address_; }

 private:
  uint32_t address_;
};

// By the thread that set arrival objects: makes them known to the copy engine.
DAQ_DEVICE void publish_arrivals() {
#if DAQ_WARPGROUPS
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- copies by the copy engine: by one thread; the bytes of the box, zeros outside of the tensor,
// are told to `arrivals` when they are there. `to` is a multiple of eight of the box's rows. ----

// Brings a map, a kernel's parameter, nearer before the first copy by it.
DAQ_DEVICE void prefetch_map(const TensorMap& map) {
#if DAQ_WARPGROUPS
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
#endif
}

DAQ_DEVICE void copy_box_async(const Shared<uint8_t>& to, const TensorMap& map, int column, int row,
                               const Arrivals& arrivals) {
#if DAQ_WARPGROUPS
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(detail::shared_address(to.at(0))),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(arrivals.address()), "r"(column), "r"(row)
      : "memory");
#endif
}

// position: of the walk's first pixel; offset: added to each pixel's position. Both D, H, W.
template <int axes>
DAQ_DEVICE void copy_walk_async(const Shared<uint8_t>& to, const TensorMap& map, int channel,
                                const int (&position)[3], int image, const int (&offset)[3],
                                const Arrivals& arrivals) {
#if DAQ_WARPGROUPS
  const uint32_t address = detail::shared_address(to.at(0));
  const auto map_address = reinterpret_cast<uint64_t>(&map);
  const auto d = static_cast<uint16_t>(offset[0]);
  const auto h = static_cast<uint16_t>(offset[1]);
  const auto w = static_cast<uint16_t>(offset[2]);
  if constexpr (axes == 2) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(address),
        "l"(map_address), "r"(arrivals.address()), "r"(channel), "r"(position[2]),
        "r"(position[1]), "r"(image), "h"(w), "h"(h)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};" ::"r"(address),
        "l"(map_address), "r"(arrivals.address()), "r"(channel), "r"(position[2]),
        "r"(position[1]), "r"(position[0]), "r"(image), "h"(w), "h"(h), "h"(d)
        : "memory");
  }
#endif
}

// ---- products of a warpgroup: four warps, the first one's number a multiple of four ----

// An operand in shared memory: rows of `span` bytes as copies bring them, of which a product takes
// 32, from byte `byte` on; rows start at a multiple of eight rows' bytes.
template <int span>
DAQ_DEVICE uint64_t matrix_descriptor(const Shared<uint8_t>& memory, int byte) {
  static_assert(span == 64 || span == 128);
  const uint64_t start = detail::shared_address(memory.at(byte));
  return (start >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{8 * span / 16} << 32 |
         uint64_t{span == 128 ? 1 : 2} << 62;
}

// By every thread whose store()s products shall read, before the barrier() that lies between.
DAQ_DEVICE void publish_stores() {
#if DAQ_WARPGROUPS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace daq_mm::cuda

#include "cuda/primitives/hardware_wgmma.h"

namespace daq_mm::cuda {

// d: sums of products, by the warpgroup's 128 lanes (64, 8 * tiles): with w the warp of the
// warpgroup, group = lane / 4 and member = lane % 4, d[j][r] is
// D[16 w + group + 8 (r / 2)][8 j + 2 member + r % 2].

namespace detail {

// Keeps the compiler from moving what touches the sums across this place.
template <int tiles>
DAQ_DEVICE void hold(int32_t (&d)[tiles][4]) {
#pragma unroll
  for (int j = 0; j < tiles; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) asm volatile("" : "+r"(d[j][r])::"memory");
  }
}

}  // namespace detail

// Before products that add to d, and after each wait. From here to finish_products(), d is theirs.
template <int tiles>
DAQ_DEVICE void begin_products(int32_t (&d)[tiles][4]) {
#if DAQ_WARPGROUPS
  detail::hold(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Before products of operands in registers, which are the products' too from here to the wait.
template <int tiles, int operands>
DAQ_DEVICE void begin_products(int32_t (&d)[tiles][4], uint32_t (&a)[operands][4]) {
#if DAQ_WARPGROUPS
#pragma unroll
  for (int i = 0; i < operands; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) asm volatile("" : "+r"(a[i][r])::"memory");
  }
  begin_products(d);
#endif
}

// d += a (64, 32) * b (32, 8 * tiles), at some time before the wait. A and B are int8_t or uint8_t;
// sums wrap modulo 2**32.
template <typename A, typename B, int tiles>
DAQ_DEVICE void multiply_add_async(int32_t (&d)[tiles][4], uint64_t a, uint64_t b) {
#if DAQ_WARPGROUPS
  detail::warpgroup_product<A, B>(d, a, b);
#endif
}

// The same with A in registers, of each warp 16 rows, as multiply_add() of hardware.h takes it. A is
// int8_t, B uint8_t.
template <int tiles>
DAQ_DEVICE void multiply_add_async(int32_t (&d)[tiles][4], const uint32_t (&a)[4], uint64_t b) {
#if DAQ_WARPGROUPS
  detail::warpgroup_product(d, a, b);
#endif
}

// Ends a group of products.
DAQ_DEVICE void commit_products() {
#if DAQ_WARPGROUPS
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most `groups` groups, the latest, are running: others' operands may be written.
template <int groups>
DAQ_DEVICE void wait_products() {
#if DAQ_WARPGROUPS
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
#endif
}

// Waits for all; d has the sums.
template <int tiles>
DAQ_DEVICE void finish_products(int32_t (&d)[tiles][4]) {
#if DAQ_WARPGROUPS
  wait_products<0>();
  detail::hold(d);
#endif
}

}  // namespace daq_mm::cuda
