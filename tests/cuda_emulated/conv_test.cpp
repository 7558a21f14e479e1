// The products with a tile and a number of splits of the test's choice, and forward's statistics:
// tests/test_cuda_emulated_conv.py. What measurements choose from: test_cuda_emulated_tune.py.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cuda/op_checks.h"
#include "cuda/primitives/multiprocessors.h"
#include "cuda/products.h"
#include "cuda/tune.h"
#include "cuda/wgmma_switch.h"

namespace daq_mm::cuda {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

PlanChoice choice_of(int64_t tile, int64_t splits) {
  return {static_cast<TileShape>(tile), splits};
}

// tile < 0: the plan's own choice.
std::tuple<at::Tensor, at::Tensor> forward_with(
    const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_w,
    const at::Tensor& w_step, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, at::ScalarType out_dtype,
    int64_t tile, int64_t splits) {
  const auto g =
      ConvGeometry::make(q_x.sizes(), q_w.sizes(), stride, padding, dilation, groups);
  const PlanChoice choice = choice_of(tile, splits);
  std::optional<at::Tensor> statistics;
  if (out_dtype != at::kInt) statistics = at::empty({4, g.co}, at::kDouble);
  at::Tensor y =
      forward_cuda(q_x, x_qparams, q_w, w_step, bias, g, out_dtype, channels_last_format(g.rank),
                   statistics, tile < 0 ? nullptr : &choice);
  return {y, statistics.has_value() ? *statistics : at::empty({0}, at::kDouble)};
}

at::Tensor grad_input_with(const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step,
                           at::IntArrayRef x_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                           at::ScalarType out_dtype, int64_t tile, int64_t splits) {
  const auto g = ConvGeometry::make(x_size, q_w.sizes(), stride, padding, dilation, groups);
  const PlanChoice choice = choice_of(tile, splits);
  return grad_input_cuda(q_g, q_w, step, g, out_dtype, channels_last_format(g.rank), &choice);
}

std::tuple<at::Tensor, at::Tensor> grad_input_reduce_with(
    const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step, at::IntArrayRef x_size,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    at::ScalarType out_dtype, const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
    const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd, int64_t tile,
    int64_t splits) {
  const auto g = ConvGeometry::make(x_size, q_w.sizes(), stride, padding, dilation, groups);
  const PlanChoice choice = choice_of(tile, splits);
  return grad_input_reduce_cuda(q_g, q_w, step, g, out_dtype, g2, mask, y, grid, mean, invstd,
                                &choice);
}

at::Tensor grad_weight_with(const at::Tensor& q_x, const at::Tensor& x_qparams,
                            const at::Tensor& q_g, const at::Tensor& g_step,
                            at::IntArrayRef kernel_size, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            at::ScalarType out_dtype, int64_t tile, int64_t splits,
                            bool channels_last) {
  std::vector<int64_t> w_size{q_g.size(1), q_x.size(1) / groups};
  w_size.insert(w_size.end(), kernel_size.begin(), kernel_size.end());
  const auto g = ConvGeometry::make(q_x.sizes(), w_size, stride, padding, dilation, groups);
  const PlanChoice choice = choice_of(tile, splits);
  const auto format =
      channels_last ? channels_last_format(g.rank) : at::MemoryFormat::Contiguous;
  return grad_weight_cuda(q_x, x_qparams, q_g, g_step, g, out_dtype, format, &choice);
}

// The tile and the splits that a plan chooses for forward or grad-input.
std::vector<int64_t> planned(bool backward, at::IntArrayRef x_size, at::IntArrayRef w_size,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups) {
  const ConvSizes s =
      conv_sizes(ConvGeometry::make(x_size, w_size, stride, padding, dilation, groups));
  const bool wgmma = may_use_wgmma(nullptr);
  const ConvPlan plan = backward ? plan_grad_input(s, multiprocessors(), wgmma, false)
                                 : plan_forward(s, multiprocessors(), wgmma, false);
  return {static_cast<int64_t>(plan.tile), plan.splits};
}

// Tiles and splits that are worth measuring, in turn; the key's numbers as in the plan table.
std::vector<int64_t> candidates(at::IntArrayRef key) {
  TORCH_CHECK_VALUE(key.size() == PlanKey::kNumbers, key.size(), " numbers");
  std::vector<int64_t> found;
  for (const PlanChoice& choice : plan_candidates(PlanKey::of(key.data()), multiprocessors())) {
    found.push_back(static_cast<int64_t>(choice.tile));
    found.push_back(choice.splits);
  }
  return found;
}

// The tile and splits that a product of this key ends with, where plans whose tile is `too_large`
// find no memory; it runs nothing.
std::vector<int64_t> measured_without_memory(at::IntArrayRef key, int64_t too_large) {
  TORCH_CHECK_VALUE(key.size() == PlanKey::kNumbers, key.size(), " numbers");
  ConvPlan last;
  run_product(PlanKey::of(key.data()), nullptr, 0, nullptr, [&](const ConvPlan& plan) {
    TORCH_CHECK_WITH(OutOfMemoryError, static_cast<int64_t>(plan.tile) != too_large, "no memory");
    last = plan;
  });
  return {static_cast<int64_t>(last.tile), last.splits};
}

}  // namespace
}  // namespace daq_mm::cuda

TORCH_LIBRARY_FRAGMENT(daq_mm_emulated, m) {
  using namespace daq_mm::cuda;
  m.def(
      "forward_with(Tensor q_x, Tensor x_qparams, Tensor q_w, Tensor w_step, Tensor? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, ScalarType out_dtype, int tile, "
      "int splits) -> (Tensor, Tensor)",
      &forward_with);
  m.def(
      "grad_input_with(Tensor q_g, Tensor q_w, Tensor step, int[] x_size, int[] stride, "
      "int[] padding, int[] dilation, int groups, ScalarType out_dtype, int tile, int splits) "
      "-> Tensor",
      &grad_input_with);
  m.def(
      "grad_input_reduce_with(Tensor q_g, Tensor q_w, Tensor step, int[] x_size, int[] stride, "
      "int[] padding, int[] dilation, int groups, ScalarType out_dtype, Tensor? g2, Tensor? mask, "
      "Tensor? y, Tensor? grid, Tensor? mean, Tensor? invstd, int tile, int splits) "
      "-> (Tensor, Tensor)",
      &grad_input_reduce_with);
  m.def(
      "planned(bool backward, int[] x_size, int[] w_size, int[] stride, int[] padding, "
      "int[] dilation, int groups) -> int[]",
      &planned);
  m.def("candidates(int[] key) -> int[]", &candidates);
  m.def("measured_without_memory(int[] key, int too_large) -> int[]", &measured_without_memory);
  m.def(
      "grad_weight_with(Tensor q_x, Tensor x_qparams, Tensor q_g, Tensor g_step, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
      "ScalarType out_dtype, int tile, int splits, bool channels_last) -> Tensor",
      &grad_weight_with);
}
