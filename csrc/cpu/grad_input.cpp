// Op daq_mm::grad_input: dX = float(sum of q_g * q_w) * step.
//
// q_g int8 (N, Co, *out) channels-last, q_w int8 (Co, Ci / groups, *kernel) contiguous, step
// float32 (Ci,) or (1,). Input position i meets tap k where i + pad - k * dilation is a multiple of
// the stride; so input positions are split by their residue modulo the stride into phases, each a
// dense product over the taps that it meets (gemm_driver.h). Results run along input channels.
// Depthwise convolutions have their own kernels (depthwise.h).

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/depthwise.h"
#include "cpu/gemm_driver.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"

namespace daq_mm::cpu {
namespace {

// Taps of one axis that input positions of residue r meet, with the shift from the position's
// index within the phase to the output position.
struct AxisTap {
  int64_t tap;
  int64_t shift;
};

std::vector<AxisTap> axis_taps(const ConvGeometry& g, int axis, int64_t residue) {
  std::vector<AxisTap> taps;
  // Backwards, so that shifts ascend: neighbouring pixels then meet rows in the forward's order.
  for (int64_t k = g.kernel[axis] - 1; k >= 0; --k) {
    const int64_t distance = residue + g.pad_begin[axis] - k * g.dilation[axis];
    if (distance % g.stride[axis] == 0) taps.push_back({k, distance / g.stride[axis]});
  }
  return taps;
}

// Multiply-adds of a gradient's byte from which moving it by 128 beforehand costs less than doing so
// at each broadcast: Intel's processors have no spare unit for that exclusive-or.
constexpr int64_t kMoveFrom = 256;

// q_g as uint8, value + 128.
at::Tensor moved_by_128(const at::Tensor& q_g) {
  at::Tensor moved = at::empty_like(q_g, q_g.options().dtype(at::kByte));
  at::parallel_for(0, q_g.numel(), 65536, [&](int64_t begin, int64_t end) {
    // Locals, because a store of bytes may change a captured pointer as far as the compiler knows.
    const int8_t* __restrict from = q_g.const_data_ptr<int8_t>();
    uint8_t* __restrict to = moved.mutable_data_ptr<uint8_t>();
    for (int64_t i = begin; i < end; ++i) to[i] = static_cast<uint8_t>(from[i]) ^ 0x80;
  });
  return moved;
}

BlockEpilogue* taken(BlockEpilogue* epilogue, const GemmProblem& problem, const at::Tensor& dx) {
  return epilogue != nullptr && takes_epilogue(problem, dx) ? epilogue : nullptr;
}

}  // namespace

// All phases, and for each tap in the phases' order its place in memory.
std::vector<Phase> grad_input_phases(const ConvGeometry& g, std::vector<int64_t>& tap_order) {
  std::vector<Phase> phases;
  for (int64_t rd = 0; rd < std::min(g.stride[0], g.in[0]); ++rd) {
    for (int64_t rh = 0; rh < std::min(g.stride[1], g.in[1]); ++rh) {
      for (int64_t rw = 0; rw < std::min(g.stride[2], g.in[2]); ++rw) {
        Phase phase;
        phase.out_start = {rd, rh, rw};
        phase.out_step = g.stride;
        phase.first_tap = static_cast<int64_t>(tap_order.size());
        for (int a = 0; a < 3; ++a) {
          phase.count[a] = (g.in[a] - phase.out_start[a] + g.stride[a] - 1) / g.stride[a];
        }
        for (const AxisTap& d : axis_taps(g, 0, rd)) {
          for (const AxisTap& h : axis_taps(g, 1, rh)) {
            for (const AxisTap& w : axis_taps(g, 2, rw)) {
              phase.shifts.push_back({d.shift, h.shift, w.shift});
              tap_order.push_back((d.tap * g.kernel[1] + h.tap) * g.kernel[2] + w.tap);
            }
          }
        }
        phases.push_back(std::move(phase));
      }
    }
  }
  return phases;
}

bool takes_moved_gradient(const ConvGeometry& g) {
  return uses_bytes(daq_mm::cpu::capability()) && !g.is_depthwise();
}

at::Tensor grad_input_cpu(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                          const ConvGeometry& g, at::ScalarType out_dtype,
                          at::MemoryFormat format, BlockEpilogue* epilogue) {
  TORCH_INTERNAL_ASSERT(q_g.scalar_type() == at::kChar || takes_moved_gradient(g));
  at::Tensor dx = empty_results(g.x_size(), q_g.options().dtype(out_dtype), format);
  if (dx.numel() == 0) return dx;
  const Capability capability = daq_mm::cpu::capability();
  const bool bytes = uses_bytes(capability);
  GemmProblem problem;
  problem.scale = to_floats(step);
  WeightView view;
  problem.phases = grad_input_phases(g, view.tap_order);
  view.data = q_w.const_data_ptr<int8_t>();
  view.groups = g.groups;
  view.lanes = g.ci_per_group();
  view.depth = g.co_per_group();
  view.taps = g.taps();
  const bool last = !q_w.is_contiguous();
  view.lane_stride = last ? 1 : view.taps;
  view.tap_stride = last ? view.lanes : 1;
  view.depth_stride = view.lanes * view.taps;
  view.group_stride = view.depth * view.depth_stride;
  const int64_t met_taps = static_cast<int64_t>(view.tap_order.size());
  // Taps that no input position meets (an input smaller than the stride) are packed, not read.
  std::vector<bool> met(view.taps, false);
  for (int64_t t : view.tap_order) met[t] = true;
  for (int64_t t = 0; t < view.taps; ++t) {
    if (!met[t]) view.tap_order.push_back(t);
  }
  problem.is_signed = bytes;
  problem.zero_point = bytes ? 128 : 0;
  SourceOptions source;
  source.is_signed = true;
  if (uses_depthwise(g)) {
    std::vector<int64_t> first_taps;
    for (const Phase& phase : problem.phases) first_taps.push_back(phase.first_tap);
    first_taps.push_back(met_taps);
    problem.depthwise = true;
    problem.weights =
        pack_depthwise(view.data, g.ci, view.tap_order, first_taps, capability);
    problem.source = make_source(q_g, capability, source);
    run_gemm(problem, capability, dx, nullptr, taken(epilogue, problem, dx));
    return dx;
  }
  problem.weights = pack_weights(view, capability, bytes);
  problem.group_channels = g.co_per_group();
  source.row_bytes = row_bytes(problem.weights, g.groups, g.co_per_group());
  at::Tensor rows = q_g;
  const bool moved = q_g.scalar_type() == at::kByte;
  if (moved || (bytes && g.ci_per_group() * g.taps() >= kMoveFrom)) {
    if (!moved) rows = moved_by_128(q_g);
    problem.is_signed = false;
    source.is_signed = false;
    source.zero_point = 128;
  }
  problem.source = make_source(rows, capability, source);
  run_gemm(problem, capability, dx, nullptr, taken(epilogue, problem, dx));
  return dx;
}

at::Tensor checked_grad_input_cpu(const at::Tensor& q_g, const at::Tensor& q_w,
                                  const at::Tensor& step, at::IntArrayRef x_size,
                                  at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation, int64_t groups,
                                  at::ScalarType out_dtype, BlockEpilogue* epilogue) {
  const auto g = ConvGeometry::make(x_size, q_w.sizes(), stride, padding, dilation, groups);
  check_size(q_g, g.out_size(), "q_g");
  check_channels_last(q_g, at::kChar, "q_g");
  check_weight(q_w, "q_w");
  check_contiguous(step, at::kFloat, "step");
  TORCH_CHECK_VALUE(step.dim() == 1 && (step.size(0) == 1 || step.size(0) == g.ci),
                    "step has size ", step.sizes(), "; expected (", g.ci, ",) or (1,)");
  check_out_dtype(out_dtype, epilogue == nullptr);
  return grad_input_cpu(q_g, q_w, step, g, out_dtype, channels_last_format(g.rank), epilogue);
}

namespace {

at::Tensor grad_input(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                      at::IntArrayRef x_size, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, int64_t groups, at::ScalarType out_dtype) {
  return checked_grad_input_cpu(q_g, q_w, step, x_size, stride, padding, dilation, groups,
                                out_dtype);
}

}  // namespace
}  // namespace daq_mm::cpu

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("grad_input", &daq_mm::cpu::grad_input); }
