// Products of a warpgroup, run by the emulator, against CuTe: CuTe lays the operands into shared
// memory, makes the descriptors that are multiplied, fills the registers of a left operand that
// comes from there, and says where the sums are. Our permutation of rows and our descriptors must
// be the same bytes and bits.

#include <cstring>
#include <memory>
#include <random>

#include <cute/algorithm/tuple_algorithms.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "comparison.h"
#include "cuda/conv_tile.h"
#include "cuda/primitives/warpgroup.h"
#include "operations.h"

namespace {

namespace primitives = daq_mm::cuda;

constexpr int kLanes = 128;  // of a warpgroup
constexpr int kRows = 128;   // of A: two products of 64
constexpr int kDepth = 32;   // of a product

std::mt19937 random_words(1);

// Rows of 128 or 64 bytes, permuted for wgmma.
template <typename T, int span>
using RowsAtom = std::conditional_t<span == 128, cute::SM90::GMMA::Layout_K_SW128_Atom<T>,
                                    cute::SM90::GMMA::Layout_K_SW64_Atom<T>>;

// A matrix of rows x span bytes, and the same as CuTe lays it into shared memory.
template <typename T, int rows, int span>
struct Operand {
  T value[rows][span];
  alignas(1024) T memory[rows * span];

  static auto layout() {
    using shape_t = cute::Shape<cute::Int<rows>, cute::Int<span>>;
    return cute::tile_to_shape(RowsAtom<T, span>{}, shape_t{});
  }
  auto tensor() { return cute::make_tensor(cute::make_smem_ptr(memory), layout()); }

  void fill() {
    auto laid = tensor();
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < span; ++k) {
        laid(row, k) = value[row][k] = static_cast<T>(random_words());
      }
    }
  }
};

template <typename A, typename B, int columns, int span>
struct Trial {
  static constexpr int kBytesOfA = kRows * span;
  static constexpr int kBytesOfB = columns * span;
  static constexpr int kSteps = span / kDepth;

  Operand<A, kRows, span> a;
  Operand<B, columns, span> b;
  uint64_t descriptor_a, descriptor_b;                // CuTe's, of one product
  uint32_t registers[kLanes][4];                      // A of that product, if it comes from there
  uint64_t our_a[kRows / 64][kSteps], our_b[kSteps];  // descriptors of all
  int32_t sums[kLanes][columns / 8][4];
};

constexpr int kBefore = 5;  // what sums begin with

// One product of A and B, which the lanes store as CuTe laid them.
template <typename A, typename B, int columns, int span, bool from_registers>
void product_kernel(Trial<A, B, columns, span>* trial) {
  using trial_t = Trial<A, B, columns, span>;
  const int lane = primitives::thread_index();
  const primitives::Shared<uint8_t> a(0, trial_t::kBytesOfA);
  const primitives::Shared<uint8_t> b(trial_t::kBytesOfA, trial_t::kBytesOfB);
  for (int i = lane; i < trial_t::kBytesOfA; i += kLanes) a.store(i, trial->a.memory[i]);
  for (int i = lane; i < trial_t::kBytesOfB; i += kLanes) b.store(i, trial->b.memory[i]);
  primitives::publish_stores();
  primitives::barrier();
  for (int step = 0; step < trial_t::kSteps && lane == 0; ++step) {
    const int byte = kDepth * (mistaken ? 0 : step);
    for (int half = 0; half < 2; ++half) {
      trial->our_a[half][step] = primitives::matrix_descriptor<span>(a, half * 64 * span + byte);
    }
    trial->our_b[step] = primitives::matrix_descriptor<span>(b, byte);
  }
  int32_t d[columns / 8][4];
  std::fill_n(&d[0][0], columns / 2, kBefore);
  if constexpr (from_registers) {
    uint32_t operands[1][4];
    std::copy_n(trial->registers[lane], 4, operands[0]);
    if (mistaken) std::swap(operands[0][1], operands[0][2]);
    primitives::begin_products(d, operands);
    primitives::multiply_add_async(d, operands[0], trial->descriptor_b);
    primitives::commit_products();
    primitives::finish_products(d);
  } else {
    const uint64_t descriptor_a = trial->descriptor_a ^ (mistaken ? kDepth >> 4 : 0);
    primitives::begin_products(d);
    primitives::multiply_add_async<A, B>(d, descriptor_a, trial->descriptor_b);
    primitives::commit_products();
    primitives::finish_products(d);
  }
  std::memcpy(trial->sums[lane], d, sizeof(d));
}

// The bytes of each row, where copies and kernels of ours put them and where CuTe does.
template <typename B, int columns, int span>
void compare_permutation(Operand<B, columns, span>& b, const std::string& name) {
  Comparison comparison("permuted rows, " + name);
  auto laid = b.tensor();
  for (int row = 0; row < columns; ++row) {
    for (int k = 0; k < span; ++k) {
      const auto theirs = &laid(row, k) - b.memory;
      const int within = row * span + k;
      const int engine = primitives::swizzled_byte(within, mistaken ? 192 - span : span);
      const int kernel = primitives::swizzled<span>(row, k / 16) + k % 16;
      comparison.equal(engine, theirs, "swizzled_byte, row", row, "byte", k);
      comparison.equal(kernel, theirs, "swizzled, row", row, "byte", k);
    }
  }
}

template <typename A, typename B, int columns, int span, bool from_registers>
void compare_product(const std::string& types) {
  using trial_t = Trial<A, B, columns, span>;
  using operation_t =
      std::conditional_t<from_registers, RegisterOperation<A, B, columns>,
                         SharedOperation<A, B, columns>>;
  using traits_t = cute::MMA_Traits<operation_t>;
  static_assert(cute::size<1>(typename traits_t::Shape_MNK{}) == columns);
  const std::string name = types + (from_registers ? " from registers" : "") + ", 64 x " +
                           std::to_string(columns) + ", rows of " + std::to_string(span);
  const auto trial = std::make_unique<trial_t>();
  trial->a.fill();
  trial->b.fill();
  compare_permutation(trial->b, name);

  // CuTe's descriptors. Without a GPU it takes every address for 0 (and says so), so what lies
  // before B is added.
  const auto slice = cute::make_tiled_mma(operation_t{}).get_thread_slice(0);
  uint64_t their_a[2][trial_t::kSteps] = {}, their_b[trial_t::kSteps];
  const auto fragment_b = slice.make_fragment_B(slice.partition_B(trial->b.tensor()));
  for (int step = 0; step < trial_t::kSteps; ++step) {
    const cute::GmmaDescriptor descriptor = fragment_b(0, 0, step);
    their_b[step] = static_cast<uint64_t>(descriptor) + (trial_t::kBytesOfA >> 4);
  }
  if constexpr (!from_registers) {
    const auto fragment_a = slice.make_fragment_A(slice.partition_A(trial->a.tensor()));
    for (int half = 0; half < 2; ++half) {
      for (int step = 0; step < trial_t::kSteps; ++step) {
        const cute::GmmaDescriptor descriptor = fragment_a(0, half, step);
        their_a[half][step] = static_cast<uint64_t>(descriptor);
      }
    }
  }

  Comparison descriptors("descriptors, " + name), products("wgmma, " + name);
  const typename traits_t::ALayout a_layout;  // (lane, value) -> row + 64 * depth
  const typename traits_t::CLayout d_layout;  // (lane, value) -> row + 64 * column
  for (int half = 0; half < 2; ++half) {
    for (int step = 0; step < trial_t::kSteps; ++step) {
      trial->descriptor_a = their_a[half][step];
      trial->descriptor_b = their_b[step];
      if constexpr (from_registers) {
        std::memset(trial->registers, 0, sizeof(trial->registers));
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int i = 0; i < 16; ++i) {
            const int at = a_layout(lane, i);
            const auto byte = static_cast<uint8_t>(
                trial->a.value[half * 64 + at % 64][step * kDepth + at / 64]);
            trial->registers[lane][i / 4] |= uint32_t{byte} << 8 * (i % 4);
          }
        }
      }
      primitives::launch(product_kernel<A, B, columns, span, from_registers>, primitives::Grid{},
                         kLanes, trial_t::kBytesOfA + trial_t::kBytesOfB, nullptr, trial.get());
      descriptors.equal(trial->our_b[step], their_b[step], "of B, step", step);
      if (!from_registers) {
        descriptors.equal(trial->our_a[half][step], their_a[half][step], "of A, step", step);
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < columns / 2; ++i) {
          const int row = d_layout(lane, i) % 64, column = d_layout(lane, i) / 64;
          int expected = kBefore;
          for (int k = step * kDepth; k < (step + 1) * kDepth; ++k) {
            expected += trial->a.value[half * 64 + row][k] * trial->b.value[column][k];
          }
          products.equal(trial->sums[lane][i / 4][i % 4], expected, "lane", lane, "sum", i);
        }
      }
    }
  }
}

void compare_all() {
  primitives::emulator::set_warpgroups(true);
  compare_product<uint8_t, int8_t, 64, 128, false>("u8 s8");
  compare_product<uint8_t, int8_t, 128, 128, false>("u8 s8");
  compare_product<uint8_t, int8_t, 256, 128, false>("u8 s8");
  compare_product<uint8_t, int8_t, 128, 64, false>("u8 s8");
  compare_product<int8_t, int8_t, 64, 64, false>("s8 s8");
  compare_product<int8_t, int8_t, 128, 64, false>("s8 s8");
  compare_product<int8_t, int8_t, 256, 64, false>("s8 s8");
  compare_product<int8_t, int8_t, 128, 128, false>("s8 s8");
  compare_product<int8_t, uint8_t, 64, 64, true>("s8 u8");
  compare_product<int8_t, uint8_t, 128, 64, true>("s8 u8");
}

}  // namespace

int main(int argument_count, char** arguments) {
  return report(argument_count, arguments, compare_all);
}
