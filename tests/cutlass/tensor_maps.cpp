// Tensor maps and copies of forward and grad-input against those of CUTLASS's own convolutions for
// compute capability 9.0, which are asked on the host, for a list of convolutions:
//
//  - what either side tells the driver of the source and of a matrix (driver_recorder.h);
//  - the coordinates and offsets of every copy: each 128 results, tap and part of the channels;
//  - the bytes that the emulator's copy engine brings by our walk and by CUTLASS's: those that the
//    definition of the convolution asks for;
//  - where both stop taking a convolution, because corners or offsets have too few bits.
//
// CUTLASS's grad-input has a stride of 1. A phase of ours with another stride is compared to
// CUTLASS's forward convolution of the gradient that it is: the taps of the phase from the last one
// on, at the distance that they have in the gradient, and padding that gives as many results.

#include "cutlass_convolution.h"

#include <cstdlib>
#include <random>
#include <vector>

#include "comparison.h"
#include "cuda/conv_tile.h"
#include "cuda/conv_wgmma.h"
#include "cuda/primitives/warpgroup.h"
#include "driver_recorder.h"

namespace {

namespace ours = daq_mm::cuda;
using theirs::Operation;
using theirs::Problem;

constexpr int kRows = 128;  // results of a tile, pixels of a copy

struct Convolution {
  const char* name;
  int axes;
  Problem sizes;
};

const Convolution kConvolutions[] = {
    {"1 x 1", 2, {3, 128, 128, {1, 9, 7}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {}, {}}},
    {"1 x 1, stride 2", 2, {3, 128, 128, {1, 9, 8}, {1, 1, 1}, {1, 2, 2}, {1, 1, 1}, {}, {}}},
    {"3 x 3, channels that are no whole span", 2,
     {2, 144, 192, {1, 14, 11}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}}},
    {"3 x 3, stride 2, even sizes", 2,
     {3, 128, 64, {1, 14, 12}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}}},
    {"3 x 3, stride 2, odd sizes", 2,
     {3, 128, 64, {1, 13, 11}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}}},
    {"3 x 3, dilation 2", 2,
     {2, 128, 128, {1, 15, 13}, {1, 3, 3}, {1, 1, 1}, {1, 2, 2}, {0, 2, 2}, {0, 2, 2}}},
    {"7 x 7, stride 2", 2,
     {2, 64, 64, {1, 20, 22}, {1, 7, 7}, {1, 2, 2}, {1, 1, 1}, {0, 3, 3}, {0, 3, 3}}},
    {"3 x 5, other padding at each side", 2,
     {3, 128, 128, {1, 10, 9}, {1, 3, 5}, {1, 1, 1}, {1, 1, 1}, {0, 0, 1}, {0, 2, 3}}},
    {"3 x 2, stride 3 x 2, dilation 2 x 1", 2,
     {3, 80, 96, {1, 17, 16}, {1, 3, 2}, {1, 3, 2}, {1, 2, 1}, {0, 1, 0}, {0, 2, 1}}},
    {"3 x 3, one result", 2,
     {5, 128, 128, {1, 3, 3}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {}, {}}},
    {"5 x 1, no padding", 2,
     {2, 128, 128, {1, 12, 9}, {1, 5, 1}, {1, 1, 1}, {1, 1, 1}, {}, {}}},
    {"3 x 3 x 3", 3,
     {2, 128, 64, {5, 7, 6}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}}},
    {"3 x 3 x 3, stride 1 x 2 x 2", 3,
     {2, 128, 64, {5, 9, 8}, {3, 3, 3}, {1, 2, 2}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}}},
    {"2 x 3 x 1, dilation 2 x 1 x 1", 3,
     {2, 64, 128, {6, 7, 9}, {2, 3, 1}, {1, 1, 1}, {2, 1, 1}, {1, 0, 0}, {2, 1, 0}}},
    {"3 x 3 x 2, stride 2 x 2 x 3, dilation 1 x 2 x 2", 3,
     {2, 128, 128, {7, 9, 10}, {3, 3, 2}, {2, 2, 3}, {1, 2, 2}, {1, 2, 1}, {1, 2, 2}}},
};

ours::ConvSizes sizes_of(const Problem& p) {
  ours::ConvSizes s;
  s.n = p.n;
  s.ci = p.ci;
  s.co = p.co;
  for (int a = 0; a < 3; ++a) {
    s.in[a] = p.size[a];
    s.kernel[a] = p.kernel[a];
    s.stride[a] = p.stride[a];
    s.dilation[a] = p.dilation[a];
    s.pad[a] = p.before[a];
    const int reach = (p.kernel[a] - 1) * p.dilation[a] + 1;
    s.out[a] = (p.size[a] + p.before[a] + p.after[a] - reach) / p.stride[a] + 1;
  }
  return s;
}

// ---- what the emulator's copy engine brings ----

struct Copy {
  ours::TensorMap map;
  int channel;
  int position[3], offset[3];  // D, H, W
  int image;
};

template <int axes, int span>
void copy_kernel(const Copy* copy, uint8_t* rows) {
  const ours::Shared<uint8_t> memory(0, kRows * span);
  const ours::Arrivals arrivals(kRows * span);
  if (ours::thread_index() == 0) {
    arrivals.set(1);
    ours::publish_arrivals();
    arrivals.arrive_and_expect(kRows * span);
    ours::copy_walk_async<axes>(memory, copy->map, copy->channel, copy->position, copy->image,
                                copy->offset, arrivals);
  }
  ours::barrier();
  arrivals.wait(0);
  for (int i = ours::thread_index(); i < kRows * span; i += ours::block_size()) {
    rows[i] = memory.load(ours::swizzled_byte(i, span));
  }
}

// 128 rows of `span` bytes.
template <int axes, int span>
std::vector<uint8_t> brought(const Copy& copy) {
  std::vector<uint8_t> rows(kRows * span, 0xee);
  ours::launch(copy_kernel<axes, span>, ours::Grid{}, 128, kRows * span + 8, nullptr, &copy,
               rows.data());
  return rows;
}

ours::TensorMap as_emulated(const ours::WalkMapping& walk) {
  ours::TensorMap map;
  map.is_walk = true;
  map.walk = walk;
  return map;
}

// The walk that an encoding describes.
ours::WalkMapping walk_of(const EncodeArguments& e) {
  ours::WalkMapping walk;
  walk.data = e.address;
  walk.axes = e.rank - 2;
  walk.channels = static_cast<int64_t>(e.sizes[0]);
  walk.images = static_cast<int64_t>(e.sizes[e.rank - 1]);
  walk.pixels = static_cast<int>(e.pixels);
  walk.span = static_cast<int>(e.channels);
  for (int i = 0; i < walk.axes; ++i) {  // W, H, (D)
    walk.size[2 - i] = static_cast<int>(e.sizes[1 + i]);
    walk.lower[2 - i] = e.lower[i];
    walk.upper[2 - i] = e.upper[i];
    walk.step[2 - i] = static_cast<int>(e.steps[1 + i]);
  }
  return walk;
}

// ---- one product: forward, or a phase of grad-input ----

struct Product {
  std::string name;
  ours::ConvSizes sizes;
  bool backward;
  int64_t phase;
  Problem problem;         // that CUTLASS gets
  bool from_the_last_tap;  // CUTLASS's convolution has the taps in this order

  ours::ConvMap map() const { return ours::conv_map(sizes, backward, phase); }
  int64_t channels() const { return backward ? sizes.co : sizes.ci; }
  const int* source_size() const { return backward ? sizes.out : sizes.in; }

  // The source position that result `row` meets by a tap, or -1 outside. By the definition:
  // y[p] meets x[p * stride - pad + tap * dilation], and dx[that] meets g[p].
  int64_t source_of(int64_t row, const int (&tap)[3]) const {
    const ours::ConvMap m = map();
    int64_t rest = row;
    int64_t at[3];
    for (int a = 2; a >= 0; --a) {
      const int64_t result = m.axis[a].start + rest % m.axis[a].count * m.axis[a].step;
      rest /= m.axis[a].count;
      const int kernel_tap = m.axis[a].first_tap + tap[a] * m.axis[a].tap_step;
      const int reach = kernel_tap * sizes.dilation[a] - sizes.pad[a];
      at[a] = backward ? result - reach : result * sizes.stride[a] + reach;
      if (backward && at[a] % sizes.stride[a] != 0) std::abort();  // no tap of this phase
      if (backward) at[a] /= sizes.stride[a];
      if (at[a] < 0 || at[a] >= source_size()[a]) return -1;
    }
    const int* size = source_size();
    return ((rest * size[0] + at[0]) * size[1] + at[1]) * size[2] + at[2];
  }
};

Product forward_of(const Convolution& c) {
  return {std::string(c.name) + ", forward", sizes_of(c.sizes), false, 0, c.sizes, false};
}

Product whole_grad_input_of(const Convolution& c) {
  return {std::string(c.name) + ", grad-input", sizes_of(c.sizes), true, 0, c.sizes, false};
}

Product phase_of(const Convolution& c, int64_t phase) {
  Product product = whole_grad_input_of(c);
  product.name += " as forward, phase " + std::to_string(phase);
  product.phase = phase;
  Problem& p = product.problem;
  std::swap(p.ci, p.co);
  const ours::ConvMap map = product.map();
  for (int a = 0; a < 3; ++a) {
    const ours::AxisMap& axis = map.axis[a];
    p.size[a] = product.sizes.out[a];
    p.kernel[a] = axis.taps;
    p.stride[a] = 1;
    p.dilation[a] = axis.taps > 1 ? std::abs(axis.shift_step) : 1;
    p.before[a] = -ours::lowest_shift(axis);
    const int reach = (axis.taps - 1) * p.dilation[a];
    p.after[a] = axis.count + reach - p.size[a] - p.before[a];
  }
  product.from_the_last_tap = true;  // whose shift is the lowest
  return product;
}

// ---- comparisons ----

// What the driver is told. Two ways to say the same are allowed, both where positions are left out
// by a stride: an upper corner of CUTLASS's beyond the last position, and the step of an axis that
// has one position.
void compare_arguments(const std::string& name, const EncodeArguments& our,
                       const EncodeArguments& their) {
  Comparison comparison("tensor map, " + name);
  comparison.equal(our.type, their.type, "type");
  comparison.equal(our.rank, their.rank, "rank");
  comparison.equal(our.address == their.address ? 1 : 0, 1, "address");
  comparison.equal(our.channels, their.channels, "channels");
  comparison.equal(our.pixels, their.pixels, "pixels");
  comparison.equal(our.interleave, their.interleave, "interleave");
  comparison.equal(our.swizzle, their.swizzle, "swizzle");
  comparison.equal(our.fill, their.fill, "fill");
  for (int i = 0; i < our.rank; ++i) comparison.equal(our.sizes[i], their.sizes[i], "size", i);
  for (int i = 0; i < our.rank - 1; ++i) {
    comparison.equal(our.strides[i], their.strides[i], "stride", i);
  }
  comparison.equal(our.steps[0], their.steps[0], "step of channels");
  comparison.equal(our.steps[our.rank - 1], their.steps[our.rank - 1], "step of images");
  const ours::WalkMapping our_walk = walk_of(our), their_walk = walk_of(their);
  const auto count = [](const ours::WalkMapping& w, int a) {
    return (w.size[a] + w.upper[a] - w.lower[a] - 1) / w.step[a] + 1;
  };
  for (int a = 3 - our_walk.axes; a < 3; ++a) {
    comparison.equal(our_walk.lower[a], their_walk.lower[a], "lower corner of axis", a);
    comparison.equal(count(our_walk, a), count(their_walk, a), "positions of axis", a);
    if (count(our_walk, a) > 1) {
      comparison.equal(our_walk.step[a], their_walk.step[a], "step of axis", a);
    }
    if (their_walk.step[a] == 1 || our_walk.upper[a] > their_walk.upper[a]) {
      comparison.equal(our_walk.upper[a], their_walk.upper[a], "upper corner of axis", a);
    }
  }
}

template <Operation operation, int axes, int span>
void compare_product(const Product& product) {
  using collective_t = theirs::Collective<operation, axes, span>;
  const std::string name = product.name + ", span " + std::to_string(span);
  const int64_t channels = product.channels();
  const int* size = product.source_size();
  const int64_t pixels = product.sizes.n * size[0] * size[1] * size[2];
  std::vector<uint8_t> memory(pixels * channels + 16);
  std::mt19937 random_words(static_cast<unsigned>(memory.size()));
  for (auto& byte : memory) byte = static_cast<uint8_t>(1 + random_words() % 255);
  const auto* source = reinterpret_cast<const uint8_t*>(
      (reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);

  // CUTLASS's, which makes the maps of both operands; the address of the weights does not matter.
  const auto shape = theirs::shape_of<operation, axes>(product.problem);
  const auto* signed_source = reinterpret_cast<const int8_t*>(source);
  last_walk = {};
  const auto their_parameters =
      collective_t::to_underlying_arguments(shape, {signed_source, signed_source}, nullptr);
  const EncodeArguments their = last_walk;
  const auto extent = collective_t::get_problem_shape_MNKL(shape);
  const auto coordinates = their_parameters.tma_load_a.get_tma_tensor(
      cute::make_shape(cute::get<0>(extent), cute::get<2>(extent)));

  // Ours.
  ours::WalkMapping walk =
      ours::walk_of(product.sizes, product.backward, product.phase, span, source);
  if (mistaken) walk.upper[2] += walk.step[2];
  const EncodeArguments our = encoded_by_us(walk);
  compare_arguments(name, our, their);

  Comparison places("places of copies, " + name), bytes("bytes of copies, " + name);
  const ours::ConvMap map = product.map();
  const int counts[3] = {map.axis[0].count, map.axis[1].count, map.axis[2].count};
  const int64_t rows = product.sizes.n * map.positions();
  places.equal(rows, static_cast<int64_t>(cute::size<0>(coordinates)), "results");
  for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
    // As bring() of conv_rows_wgmma.h has it.
    const auto first = ours::GridPosition::of(first_row, counts);
    Copy copy{as_emulated(walk), 0, {}, {}, first.image};
    for (int a = 0; a < 3; ++a) {
      copy.position[a] = first.at[a] * map.axis[a].multiplier + ours::lowest_shift(map.axis[a]);
    }
    for (int i = 0; i < map.taps() * ours::ceil_div(channels, int64_t{span}); ++i) {
      const int at = static_cast<int>(i % map.taps());
      copy.channel = static_cast<int>(i / map.taps()) * span;
      const int across = map.axis[2].taps, down = map.axis[1].taps;
      const int tap[3] = {at / across / down, at / across % down, at % across};
      int their_tap[3];
      for (int a = 0; a < 3; ++a) {
        copy.offset[a] = ours::tap_offset(map.axis[a], tap[a]);
        their_tap[a] = product.from_the_last_tap && map.axis[a].shift_step < 0
                           ? map.axis[a].taps - 1 - tap[a]
                           : tap[a];
      }
      if (mistaken) ++copy.offset[2];

      // CUTLASS's coordinates of (result, (channel, taps W, H, (D))): channel, W, H, (D), image,
      // offsets W, H, (D), which is the instruction's order and ours.
      int their_place[8], their_count = 0;
      const auto their_coordinates = [&] {
        const int row = static_cast<int>(first_row);
        if constexpr (axes == 2) {
          return coordinates(row, cute::make_coord(copy.channel, their_tap[2], their_tap[1]));
        } else {
          return coordinates(
              row, cute::make_coord(copy.channel, their_tap[2], their_tap[1], their_tap[0]));
        }
      }();
      cute::for_each(cute::flatten(their_coordinates),
                     [&](auto value) { their_place[their_count++] = static_cast<int>(value); });
      Copy their_copy{as_emulated(walk_of(their)), their_place[0], {}, {}, their_place[1 + axes]};
      places.equal(copy.channel, their_copy.channel, "channel");
      places.equal(copy.image, their_copy.image, "image");
      for (int j = 0; j < axes; ++j) {
        const int a = 2 - j;
        their_copy.position[a] = their_place[1 + j];
        their_copy.offset[a] = their_place[2 + axes + j];
        places.equal(copy.position[a], their_copy.position[a], "position of axis", a);
        places.equal(copy.offset[a], their_copy.offset[a], "offset of axis", a, "tap", tap[a]);
      }

      const auto our_bytes = brought<axes, span>(copy);
      const auto their_bytes = brought<axes, span>(their_copy);
      for (int row = 0; row < kRows; ++row) {
        const bool exists = first_row + row < rows;
        const int64_t pixel = exists ? product.source_of(first_row + row, tap) : -1;
        for (int j = 0; j < span; ++j) {
          const bool inside = pixel >= 0 && copy.channel + j < channels;
          const uint8_t wanted = inside ? source[pixel * channels + copy.channel + j] : 0;
          bytes.equal(our_bytes[row * span + j], wanted, "wanted by the definition, row", row);
          bytes.equal(their_bytes[row * span + j], wanted, "brought by CUTLASS's walk, row", row);
        }
      }
    }
  }
}

template <int axes>
void compare_convolution(const Convolution& c) {
  compare_product<Operation::kFprop, axes, 128>(forward_of(c));
  if (axes == 2) compare_product<Operation::kFprop, 2, 64>(forward_of(c));
  const ours::ConvSizes sizes = sizes_of(c.sizes);
  const int64_t phases = ours::phases(sizes, true);
  if (phases == 1) compare_product<Operation::kDgrad, axes, 128>(whole_grad_input_of(c));
  if (phases > ours::kMostWgmmaPhases) return;  // not run by wgmma
  for (int64_t phase = 0; phase < phases; ++phase) {
    const ours::ConvMap map = ours::conv_map(sizes, true, phase);
    if (map.positions() == 0 || map.taps() == 0) continue;  // no copies
    compare_product<Operation::kFprop, axes, 128>(phase_of(c, phase));
  }
}

// Which corners and offsets either side takes, around the limits of the engine. CUTLASS also limits
// the padding by itself, in 3D to less than corners could hold; beyond that nothing is compared.
template <int axes>
void compare_limits(int most) {
  using collective_t = theirs::Collective<Operation::kFprop, axes, 128>;
  Comparison comparison("limits of corners and offsets, " + std::to_string(axes) + "D");
  const int most_padding = axes == 2 ? 256 : 16;
  const auto compare = [&](int before, int after, int dilation) {
    if (before > most_padding || after > most_padding) return;
    Problem p{1, 128, 128, {1, 700, 700}, {1, 2, 2}, {1, 1, 1}, {1, dilation, dilation}, {}, {}};
    if (axes == 3) p.size[0] = p.kernel[0] = 2;
    for (int a = 1; a < 3; ++a) {
      p.before[a] = before;
      p.after[a] = after;
    }
    const ours::WalkMapping walk = ours::walk_of(sizes_of(p), false, 0, 128, nullptr);
    const bool we_take_it = (ours::refusal(walk) == nullptr) != mistaken;
    const bool they_take_it = collective_t::can_implement(
        theirs::shape_of<Operation::kFprop, axes>(p), typename collective_t::Arguments{});
    comparison.equal(we_take_it ? 1 : 0, they_take_it ? 1 : 0, "padding", before, after,
                     "dilation", dilation);
  };
  for (int near = -3; near <= 3; ++near) {
    compare(most + near, 0, 1);
    compare(0, 0, most + near);
    compare(0, most + near, most + near);
    compare(most - 3, most + near, 2 * most + near);
    compare(1, most, 2 * most + near);
  }
}

// A box of a matrix, as packed weights are copied.
template <int box_rows, int span>
void compare_matrix() {
  Comparison comparison("matrix, box of " + std::to_string(box_rows) + " x " +
                        std::to_string(span));
  ours::MatrixMapping m;
  m.data = reinterpret_cast<const void*>(uintptr_t{0x10000});
  m.rows = 200;
  m.columns = 9 * 128;
  m.box_rows = box_rows;
  m.span = mistaken ? 192 - span : span;
  const EncodeArguments our = encoded_by_us(m);

  const auto layout = cute::make_layout(
      cute::make_shape(static_cast<int>(m.rows), static_cast<int>(m.columns)),
      cute::make_stride(m.columns, cute::Int<1>{}));
  const auto* data = static_cast<const uint8_t*>(m.data);
  const auto matrix = cute::make_tensor(cute::make_gmem_ptr(data), layout);
  const auto box = cute::make_shape(cute::Int<box_rows>{}, cute::Int<span>{});
  const auto rows = cute::tile_to_shape(theirs::RowsAtom<span>{}, box);
  last_matrix = {};
  const auto copy =
      cute::make_tma_copy(cute::SM90_TMA_LOAD{}, matrix, rows, box, cute::Int<1>{});
  const EncodeArguments their = last_matrix;

  comparison.equal(our.type, their.type, "type");
  comparison.equal(our.rank, their.rank, "rank");
  comparison.equal(our.address == their.address ? 1 : 0, 1, "address");
  comparison.equal(our.interleave, their.interleave, "interleave");
  comparison.equal(our.swizzle, their.swizzle, "swizzle");
  comparison.equal(our.fill, their.fill, "fill");
  comparison.equal(our.strides[0], their.strides[0], "stride");
  for (int i = 0; i < 2; ++i) {
    comparison.equal(our.sizes[i], their.sizes[i], "size", i);
    comparison.equal(our.box[i], their.box[i], "box", i);
    comparison.equal(our.steps[i], their.steps[i], "step", i);
  }
  // copy_box_async() takes column, row.
  const auto place = cute::flatten(copy.get_tma_tensor(cute::shape(layout))(65, 384));
  comparison.equal(384, static_cast<int>(cute::get<0>(place)), "column");
  comparison.equal(65, static_cast<int>(cute::get<1>(place)), "row");
}

void compare_all() {
  ours::emulator::set_warpgroups(true);
  for (const Convolution& c : kConvolutions) {
    c.axes == 2 ? compare_convolution<2>(c) : compare_convolution<3>(c);
  }
  compare_limits<2>(128);
  compare_limits<3>(16);
  compare_matrix<64, 128>();
  compare_matrix<128, 128>();
  compare_matrix<256, 128>();
  compare_matrix<64, 64>();
  compare_matrix<128, 64>();
}

}  // namespace

int main(int argument_count, char** arguments) {
  return report(argument_count, arguments, compare_all);
}
