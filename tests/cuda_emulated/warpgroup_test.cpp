// Kernels that the tests of compute capability 9.0's primitives run: tests/test_cuda_warpgroup.py.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/primitives/warpgroup.h"

namespace daq_mm::cuda {
namespace {

// One copy by the copy engine into shared memory, and shared memory as it is then.
DAQ_KERNEL(128, 1)
void bring_kernel(DAQ_GRID_CONSTANT const TensorMap map, int bytes, int axes, int first, int second,
                  int third, int fourth, int fifth, int offset_d, int offset_h, int offset_w,
                  Global<uint8_t> to) {
  const Arrivals full(bytes);
  const Shared<uint8_t> memory(0, bytes);
  if (thread_index() == 0) {
    full.set(1);
    publish_arrivals();
    full.arrive_and_expect(bytes);
    const int position[3] = {second, third, fourth};
    const int offset[3] = {offset_d, offset_h, offset_w};
    if (axes == 0) copy_box_async(memory, map, first, second, full);
    if (axes == 2) copy_walk_async<2>(memory, map, first, position, fifth, offset, full);
    if (axes == 3) copy_walk_async<3>(memory, map, first, position, fifth, offset, full);
  }
  barrier();
  full.wait(0);
  for (int i = thread_index(); i < bytes; i += 128) to.store(i, memory.load(i));
}

at::Tensor bring_box(const at::Tensor& matrix, int64_t span, int64_t rows, int64_t column,
                     int64_t row) {
  MatrixMapping m;
  m.data = matrix.const_data_ptr();
  m.rows = matrix.size(0);
  m.columns = matrix.size(1);
  m.box_rows = static_cast<int>(rows);
  m.span = static_cast<int>(span);
  at::Tensor to = at::empty({rows * span}, matrix.options());
  const int bytes = static_cast<int>(rows * span);
  launch(bring_kernel, Grid{}, 128, bytes + 8, nullptr, make_tensor_map(m), bytes, 0,
         static_cast<int>(column), static_cast<int>(row), 0, 0, 0, 0, 0, 0,
         Global<uint8_t>(to.mutable_data_ptr<uint8_t>(), to.numel()));
  return to;
}

// images (n, d, h, w, c); the others D, H, W.
at::Tensor bring_walk(const at::Tensor& images, int64_t axes, at::IntArrayRef lower,
                      at::IntArrayRef upper, at::IntArrayRef step, int64_t span, int64_t pixels,
                      int64_t channel, at::IntArrayRef position, int64_t image,
                      at::IntArrayRef offset) {
  WalkMapping m;
  m.data = images.const_data_ptr();
  m.axes = static_cast<int>(axes);
  m.channels = images.size(4);
  m.images = images.size(0);
  for (int a = 0; a < 3; ++a) {
    m.size[a] = static_cast<int>(images.size(a + 1));
    m.lower[a] = static_cast<int>(lower[a]);
    m.upper[a] = static_cast<int>(upper[a]);
    m.step[a] = static_cast<int>(step[a]);
    m.most_offset[a] = static_cast<int>(offset[a]);
  }
  m.pixels = static_cast<int>(pixels);
  m.span = static_cast<int>(span);
  at::Tensor to = at::empty({pixels * span}, images.options());
  const int bytes = static_cast<int>(pixels * span);
  launch(bring_kernel, Grid{}, 128, bytes + 8, nullptr, make_tensor_map(m), bytes, m.axes,
         static_cast<int>(channel), static_cast<int>(position[0]), static_cast<int>(position[1]),
         static_cast<int>(position[2]), static_cast<int>(image), static_cast<int>(offset[0]),
         static_cast<int>(offset[1]), static_cast<int>(offset[2]),
         Global<uint8_t>(to.mutable_data_ptr<uint8_t>(), to.numel()));
  return to;
}

// Faults, each of which the emulator must name; 'none' must pass.
enum class Fault : int {
  kNone, kWithoutBegin, kBeforeTheWait, kReadsInFlight, kRefillsTooEarly, kTooFewArrivals,
  kTooManyBytes, kProductsAtEnd, kCopiesAtEnd, kArrivalsNotSet, kArrivalsUnordered, kMissingLane,
  kOtherOperands, kSumsTooEarly, kArrivalsAsMemory, kMisplaced,
};

// D (64, 8 tiles) = A (64, span) B^T, B (8 tiles, span), in two rounds through the same shared
// memory, so that twice the product results. Warp 4 copies.
template <typename A, int tiles, int span>
void product_kernel(DAQ_GRID_CONSTANT const TensorMap a, DAQ_GRID_CONSTANT const TensorMap b,
                    Fault fault, Global<int32_t> result) {
  constexpr int kLeft = 64 * span, kRight = 8 * tiles * span;
  const Shared<uint8_t> left(0, kLeft), right(kLeft, kRight);
  const Arrivals full(kLeft + kRight), empty(kLeft + kRight + 8), unset(kLeft + kRight + 16);
  const int t = thread_index();
  if (t == 0) {
    full.set(1);
    empty.set(fault == Fault::kTooFewArrivals ? 5 : 4);
    publish_arrivals();
  }
  if (fault != Fault::kArrivalsUnordered) barrier();
  if (t >= 128) {
    for (int round = 0; round < 2; ++round) {
      if (t != 128) continue;
      if (fault != Fault::kRefillsTooEarly) empty.wait(round ^ 1);
      full.arrive_and_expect(kLeft + kRight + (fault == Fault::kTooManyBytes ? 16 : 0));
      const int misplaced = fault == Fault::kMisplaced ? 128 : 0;
      copy_box_async(Shared<uint8_t>(misplaced, kLeft), a, 0, 0, full);
      copy_box_async(right, b, 0, 0, full);
    }
    return;
  }
  int32_t d[tiles][4] = {};
  for (int round = 0; round < 2; ++round) {
    if (fault == Fault::kCopiesAtEnd && round == 1) return;
    if (fault == Fault::kMissingLane && t == 77) return;
    if (fault == Fault::kReadsInFlight && round == 1) d[0][0] += left.load(t);
    if (fault == Fault::kArrivalsNotSet) unset.wait(0);
    if (fault != Fault::kBeforeTheWait || round == 0 || t / kWarp != 2) full.wait(round);
    if (fault != Fault::kWithoutBegin) begin_products(d);
    for (int byte = 0; byte < span; byte += 32) {
      const int other = fault == Fault::kOtherOperands && t < kWarp ? 64 - byte : byte;
      multiply_add_async<A, int8_t>(d, matrix_descriptor<span>(left, other),
                                    matrix_descriptor<span>(right, byte));
    }
    commit_products();
    if (fault == Fault::kProductsAtEnd && round == 1) return;
    if (fault == Fault::kSumsTooEarly && round == 1) result.store(0, d[0][0]);
    wait_products<0>();
    if (lane_index() == 0) empty.arrive();
  }
  if (fault == Fault::kSumsTooEarly) return;
  if (fault == Fault::kArrivalsAsMemory) d[0][0] += Shared<uint8_t>(kLeft + kRight, 8).load(0);
  finish_products(d);
  for (int j = 0; j < tiles; ++j) {
    for (int r = 0; r < 4; ++r) {
      const int row = t / kWarp * 16 + lane_index() / 4 + (r >= 2 ? 8 : 0);
      result.store(row * 8 * tiles + j * 8 + lane_index() % 4 * 2 + r % 2, d[j][r]);
    }
  }
}

MatrixMapping mapping_of(const at::Tensor& t) {
  MatrixMapping m;
  m.data = t.const_data_ptr();
  m.rows = t.size(0);
  m.columns = t.size(1);
  m.box_rows = static_cast<int>(t.size(0));
  m.span = static_cast<int>(t.size(1));
  return m;
}

template <typename A, int tiles, int span>
at::Tensor run_product(const at::Tensor& a, const at::Tensor& b, Fault fault) {
  at::Tensor d = at::zeros({64, 8 * tiles}, a.options().dtype(at::kInt));
  launch(product_kernel<A, tiles, span>, Grid{}, 160, (64 + 8 * tiles) * span + 24, nullptr,
         make_tensor_map(mapping_of(a)), make_tensor_map(mapping_of(b)), fault,
         Global<int32_t>(d.mutable_data_ptr<int32_t>(), d.numel()));
  return d;
}

template <typename A>
at::Tensor product_of(const at::Tensor& a, const at::Tensor& b, Fault fault) {
  const bool wide = a.size(1) == 128;
  switch (b.size(0)) {
    case 64: return wide ? run_product<A, 8, 128>(a, b, fault) : run_product<A, 8, 64>(a, b, fault);
    case 128:
      return wide ? run_product<A, 16, 128>(a, b, fault) : run_product<A, 16, 64>(a, b, fault);
    default:
      return wide ? run_product<A, 32, 128>(a, b, fault) : run_product<A, 32, 64>(a, b, fault);
  }
}

at::Tensor warpgroup_product(const at::Tensor& a, const at::Tensor& b, int64_t fault) {
  const auto which = static_cast<Fault>(fault);
  return a.scalar_type() == at::kChar ? product_of<int8_t>(a, b, which)
                                      : product_of<uint8_t>(a, b, which);
}

// Faults of products whose operands threads bring; 'none' must pass.
enum class StoreFault : int { kNone, kUnpublished, kChangedRegisters, kOverwritten };

// D (64, 8 tiles) = A B^T, A (64, 64) int8 from registers, B (8 tiles, 64) uint8 stored by threads.
template <int tiles>
void register_product_kernel(Global<const uint8_t> a, Global<const uint8_t> b, StoreFault fault,
                             Global<int32_t> result) {
  const Shared<uint8_t> right(0, 8 * tiles * 64);
  const int t = thread_index(), group = lane_index() / 4, member = lane_index() % 4;
  for (int i = t; i < 8 * tiles * 64; i += 128) {
    const int row = i / 64, chunk = i % 64 / 16;
    right.store(row * 64 + (chunk ^ (row / 2 % 4)) * 16 + i % 16, b.load(i));
  }
  if (fault != StoreFault::kUnpublished || t != 70) publish_stores();
  uint32_t left[2][4] = {};
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 16; ++i) {
      const int r = i / 4, row = t / kWarp * 16 + group + r % 2 * 8;
      const int column = half * 32 + r / 2 * 16 + member * 4 + i % 4;
      left[half][r] |= static_cast<uint32_t>(a.load(row * 64 + column)) << i % 4 * 8;
    }
  }
  barrier();
  int32_t d[tiles][4] = {};
  begin_products(d, left);
  for (int half = 0; half < 2; ++half) {
    multiply_add_async(d, left[half], matrix_descriptor<64>(right, half * 32));
  }
  commit_products();
  if (fault == StoreFault::kOverwritten) {
    barrier();
    right.store(t, uint8_t{0});
  }
  if (fault == StoreFault::kChangedRegisters && t == 99) left[1][2] += 1;
  finish_products(d);
  for (int j = 0; j < tiles; ++j) {
    for (int r = 0; r < 4; ++r) {
      const int row = t / kWarp * 16 + group + (r >= 2 ? 8 : 0);
      result.store(row * 8 * tiles + j * 8 + member * 2 + r % 2, d[j][r]);
    }
  }
}

at::Tensor register_product(const at::Tensor& a, const at::Tensor& b, int64_t fault) {
  at::Tensor d = at::zeros({64, b.size(0)}, b.options().dtype(at::kInt));
  const Global<const uint8_t> left(reinterpret_cast<const uint8_t*>(a.const_data_ptr<int8_t>()),
                                   a.numel());
  const Global<const uint8_t> right(b.const_data_ptr<uint8_t>(), b.numel());
  const Global<int32_t> result(d.mutable_data_ptr<int32_t>(), d.numel());
  const auto which = static_cast<StoreFault>(fault);
  const auto bytes = b.numel();
  if (b.size(0) == 64) {
    launch(register_product_kernel<8>, Grid{}, 128, bytes, nullptr, left, right, which, result);
  } else {
    launch(register_product_kernel<16>, Grid{}, 128, bytes, nullptr, left, right, which, result);
  }
  return d;
}

}  // namespace
}  // namespace daq_mm::cuda

TORCH_LIBRARY_FRAGMENT(daq_mm_emulated, m) {
  using namespace daq_mm::cuda;
  m.def("bring_box(Tensor matrix, int span, int rows, int column, int row) -> Tensor", &bring_box);
  m.def(
      "bring_walk(Tensor images, int axes, int[] lower, int[] upper, int[] step, int span, "
      "int pixels, int channel, int[] position, int image, int[] offset) -> Tensor",
      &bring_walk);
  m.def("warpgroup_product(Tensor a, Tensor b, int fault) -> Tensor", &warpgroup_product);
  m.def("register_product(Tensor a, Tensor b, int fault) -> Tensor", &register_product);
}
