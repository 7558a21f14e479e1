// Products and matrix loads of a warp, run by the emulator, against CuTe's layouts of the
// fragments: which lane holds which element in which register is taken from CuTe alone.

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>
#include <random>

#include "comparison.h"
#include "cuda/primitives/primitives.h"
#include "operations.h"
#include "quarters.h"

namespace {

namespace primitives = daq_mm::cuda;
using primitives::kWarp;

std::mt19937 random_words(1);

// What the lanes of a warp give to a product, and get.
struct Fragments {
  int32_t d[kWarp][4];
  uint32_t a[kWarp][4];
  uint32_t b[kWarp][2];
};

Fragments random_fragments() {
  Fragments f;
  for (int lane = 0; lane < kWarp; ++lane) {
    for (auto& word : f.d[lane]) word = static_cast<int32_t>(random_words());
    for (auto& word : f.a[lane]) word = random_words();
    for (auto& word : f.b[lane]) word = random_words();
  }
  return f;
}

template <typename A, typename B>
void product_kernel(Fragments* f) {
  const int lane = primitives::lane_index();
  uint32_t a[4];
  std::copy_n(f->a[lane], 4, a);
  if (mistaken) std::swap(a[1], a[2]);
  primitives::multiply_add<A, B>(f->d[lane], a, f->b[lane]);
}

template <typename T>
int byte_of(uint32_t word, int i) {
  return static_cast<T>(word >> 8 * i);
}

// d += A B of a product of CuTe's, for the registers of all lanes that it takes: sums from
// d[lane][first_sum] on, a[lane][first_a] on, b[lane][first_b] on. Wraps.
template <typename operation_t, typename A, typename B>
void multiply_by_layout(Fragments& f, int first_sum, int first_a, int first_b) {
  using traits_t = cute::MMA_Traits<operation_t>;
  constexpr int kRows = cute::size<0>(typename traits_t::Shape_MNK{});
  constexpr int kColumns = cute::size<1>(typename traits_t::Shape_MNK{});
  constexpr int kDepth = cute::size<2>(typename traits_t::Shape_MNK{});
  // (lane, value) -> row + rows * depth; of B column + columns * depth; of D row + rows * column.
  const typename traits_t::ALayout a_layout;
  const typename traits_t::BLayout b_layout;
  const typename traits_t::CLayout d_layout;
  int a[kRows][kDepth], b[kColumns][kDepth];
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < kRows * kDepth / kWarp; ++i) {
      const int at = a_layout(lane, i);
      a[at % kRows][at / kRows] = byte_of<A>(f.a[lane][first_a + i / 4], i % 4);
    }
    for (int i = 0; i < kColumns * kDepth / kWarp; ++i) {
      const int at = b_layout(lane, i);
      b[at % kColumns][at / kColumns] = byte_of<B>(f.b[lane][first_b + i / 4], i % 4);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < kRows * kColumns / kWarp; ++i) {
      const int at = d_layout(lane, i);
      int64_t sum = f.d[lane][first_sum + i];
      for (int k = 0; k < kDepth; ++k) sum += a[at % kRows][k] * b[at / kRows][k];
      f.d[lane][first_sum + i] = static_cast<int32_t>(sum);
    }
  }
}

template <typename A, typename B>
void compare_products(const std::string& types) {
  Comparison whole("mma.sync.m16n8k32 " + types);
  Comparison quarters("mma.sync.m16n8k32 " + types + " by four m8n8k16");
  for (int round = 0; round < 20; ++round) {
    const Fragments before = random_fragments();
    Fragments ours = before, theirs = before, theirs_by_quarters = before;
    primitives::launch(product_kernel<A, B>, primitives::Grid{}, kWarp, 0, nullptr, &ours);
    multiply_by_layout<typename Operation16x8x32<A, B>::type, A, B>(theirs, 0, 0, 0);
    for (int i = 0; i < kQuarters; ++i) {
      const Quarter q = quarter(i);
      using operation_t = typename Operation8x8x16<A, B>::type;
      multiply_by_layout<operation_t, A, B>(theirs_by_quarters, q.first_sum, q.a, q.b);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        whole.equal(ours.d[lane][i], theirs.d[lane][i], "lane", lane, "sum", i);
        quarters.equal(ours.d[lane][i], theirs_by_quarters.d[lane][i], "lane", lane, "sum", i);
      }
    }
  }
}

constexpr int kRowBytes = 16;  // of a matrix load: lane l names row l

struct Matrices {
  uint8_t rows[kWarp * kRowBytes];
  uint32_t result[kWarp][4];
};

void load_kernel(Matrices* m, bool transposed) {
  const primitives::Shared<uint8_t> memory(0, sizeof(m->rows));
  const int lane = primitives::lane_index(), first = lane * kRowBytes;
  for (int i = first; i < first + kRowBytes; ++i) memory.store(i, m->rows[i]);
  primitives::warp_barrier();
  if (transposed) {
    primitives::load_matrices_transposed(m->result[lane], memory, first);
  } else {
    primitives::load_matrices(m->result[lane], memory, first);
  }
}

template <typename operation_t>
void compare_loads(const std::string& name, bool transposed) {
  Comparison comparison(name);
  Matrices m;
  for (auto& byte : m.rows) byte = static_cast<uint8_t>(random_words());
  primitives::launch(load_kernel, primitives::Grid{}, kWarp, sizeof(m.rows), nullptr, &m,
                     transposed != mistaken);
  // (lane, bit) -> bit of the rows.
  const typename cute::Copy_Traits<operation_t>::DstLayout layout;
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 16; ++i) {
      const int ours = byte_of<uint8_t>(m.result[lane][i / 4], i % 4);
      comparison.equal(ours, m.rows[layout(lane, 8 * i) / 8], "lane", lane, "byte", i);
    }
  }
}

void compare_all() {
  compare_products<int8_t, int8_t>("s8 s8");
  compare_products<int8_t, uint8_t>("s8 u8");
  compare_products<uint8_t, int8_t>("u8 s8");
  compare_products<uint8_t, uint8_t>("u8 u8");
  compare_loads<cute::SM75_U32x4_LDSM_N>("ldmatrix.x4", false);
  compare_loads<cute::SM75_U16x8_LDSM_T>("ldmatrix.x4.trans", true);
}

}  // namespace

int main(int argument_count, char** arguments) {
  return report(argument_count, arguments, compare_all);
}
