// Op daq_mm::grad_input_reduce: grad-input of a convolution and, in its epilogue, what
// norm_act_reduce does with it for the unit that made the convolution's input:
//
//   gz = mask ? dX [+ g2] : 0;  sums of gz and of gz * (y_hat - mean) * invstd
//
// A block of dX is masked in place and summed by the thread that computed it, while it is in its
// second-level cache: dX is never read from memory. The parts of the sums depend on sizes alone.
// Where blocks are not of consecutive pixels (a stride, see takes_epilogue) a pass over dX follows.

#include <optional>
#include <tuple>

#include <torch/library.h>

#include "cpu/gemm_driver.h"
#include "cpu/glue_gradient.h"
#include "cpu/products.h"

namespace daq_mm::cpu {
namespace {

class ReduceEpilogue final : public BlockEpilogue {
 public:
  ReduceEpilogue(const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
                 const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd)
      : g2_(g2), mask_(mask), y_(y), grid_(grid), mean_(mean), invstd_(invstd) {}

  void start(const at::Tensor& out, int64_t parts) override {
    gradient_.emplace(out, mask_, y_, grid_);
    gradient_->set_statistics(g2_, mean_, invstd_, out);
    gradient_->task.out = out.data_ptr();
    loop_ = glue_loops().reduce[gradient_->dtype][static_cast<int>(gradient_->kind)];
    partial_.assign(parts * 2 * gradient_->width, 0.0);
  }

  void apply(int64_t part, int64_t first, int64_t last, int64_t first_channel,
             int64_t last_channel) override {
    GradientTask task = gradient_->task;
    task.first_channel = first_channel;
    task.last_channel = last_channel;
    loop_(task, first, last, partial_.data() + part * 2 * gradient_->width);
  }

  bool started() const { return gradient_.has_value(); }
  at::Tensor sums() const { return sums_of_parts(partial_, gradient_->task.channels); }

 private:
  const MaybeTensor &g2_, &mask_, &y_, &grid_, &mean_, &invstd_;
  std::optional<Gradient> gradient_;
  void (*loop_)(const GradientTask&, int64_t, int64_t, double*) = nullptr;
  std::vector<double> partial_;
};

std::tuple<at::Tensor, at::Tensor> grad_input_reduce(
    const at::Tensor& q_g, const at::Tensor& q_w, const at::Tensor& step, at::IntArrayRef x_size,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    at::ScalarType out_dtype, const MaybeTensor& g2, const MaybeTensor& mask, const MaybeTensor& y,
    const MaybeTensor& grid, const MaybeTensor& mean, const MaybeTensor& invstd) {
  ReduceEpilogue epilogue(g2, mask, y, grid, mean, invstd);
  at::Tensor dx = checked_grad_input_cpu(q_g, q_w, step, x_size, stride, padding, dilation, groups,
                                         out_dtype, &epilogue);
  if (epilogue.started()) return {dx, epilogue.sums()};
  return norm_act_reduce_cpu(dx, g2, mask, y, grid, mean, invstd, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("grad_input_reduce", &grad_input_reduce); }

}  // namespace daq_mm::cpu
