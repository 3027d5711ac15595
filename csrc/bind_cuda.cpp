// The CUDA implementation of the rwkv_lab::wkv operators, which the CPU library defines.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "wkv_cuda.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using wkv_bind::Arguments;
using wkv_bind::check_arguments;
using wkv_bind::check_like;

wkv::gpu::Type type_of(ScalarType type) {
    if (type == ScalarType::Float) return wkv::gpu::Type::float32;
    if (type == ScalarType::BFloat16) return wkv::gpu::Type::bfloat16;
    STD_TORCH_CHECK(type == ScalarType::Half, "wkv on CUDA takes float32, bfloat16 or float16");
    return wkv::gpu::Type::float16;
}

wkv::gpu::Sizes sizes_of(const Arguments& args) {
    STD_TORCH_CHECK(args.k.is_cuda(), "wkv: k is not on a CUDA device");
    STD_TORCH_CHECK(args.B > 0 && args.T > 0 && args.C > 0, "wkv on CUDA: k is empty");
    STD_TORCH_CHECK(args.T < (1 << 30) && args.B * args.C < (1 << 30), "wkv: T and B C must be below 2^30");
    return {args.B, args.T, args.C, args.log_eps(), args.highest_k(), type_of(args.k.scalar_type())};
}

int64_t rows_of(int64_t T) { return (T + wkv::gpu::CHECKPOINT_STEPS - 1) / wkv::gpu::CHECKPOINT_STEPS + 1; }

void* stream_of(const Tensor& k) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(k.get_device_index(), &stream));
    return stream;
}

const float* in(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
const float* in(const std::optional<Tensor>& x) { return x ? in(*x) : nullptr; }
float* out(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }
float* out(const std::optional<Tensor>& x) { return x ? out(*x) : nullptr; }

std::optional<Tensor> scratch_like(const Tensor& w, int64_t floats) {
    if (floats == 0) return std::nullopt;
    return torch::stable::new_empty(w, {floats});
}

void check_launch(const char* failure) { STD_TORCH_CHECK(failure == nullptr, "wkv: ", failure); }

std::tuple<Tensor, Tensor, Tensor> wkv_fwd(Tensor w, Tensor u, Tensor k, Tensor v, std::optional<Tensor> state,
                                           double den_eps, std::optional<double> k_max, bool keep) {
    const Arguments args = check_arguments(w, u, k, v, den_eps, k_max);
    const wkv::gpu::Sizes sizes = sizes_of(args);
    if (state) check_like(*state, {args.B, 3, args.C}, ScalarType::Float, k, "state");
    const torch::stable::accelerator::DeviceGuard guard(k.get_device_index());
    Tensor y = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor state_out = torch::stable::new_empty(w, {args.B, 3, args.C});
    Tensor checkpoints = torch::stable::new_empty(w, {args.B, keep ? rows_of(args.T) : 0, 3, args.C});
    const auto scratch = scratch_like(w, wkv::gpu::scratch_of(sizes).forward);
    check_launch(wkv::gpu::forward(sizes, in(w), in(u), k.const_data_ptr(), v.const_data_ptr(), in(state),
                                   y.mutable_data_ptr(), out(state_out), keep ? out(checkpoints) : nullptr,
                                   out(scratch), stream_of(k)));
    return {y, state_out, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> wkv_bwd(Tensor w, Tensor u, Tensor k, Tensor v, Tensor checkpoints,
                                                           Tensor gy, std::optional<Tensor> gstate, double den_eps,
                                                           std::optional<double> k_max) {
    const Arguments args = check_arguments(w, u, k, v, den_eps, k_max);
    const wkv::gpu::Sizes sizes = sizes_of(args);
    check_like(checkpoints, {args.B, rows_of(args.T), 3, args.C}, ScalarType::Float, k, "checkpoints");
    check_like(gy, {args.B, args.T, args.C}, k.scalar_type(), k, "gy");
    if (gstate) check_like(*gstate, {args.B, 3, args.C}, ScalarType::Float, k, "gstate");
    const torch::stable::accelerator::DeviceGuard guard(k.get_device_index());
    Tensor gw = torch::stable::new_empty(w, {args.B, args.C});
    Tensor gu = torch::stable::new_empty(w, {args.B, args.C});
    Tensor gk = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor gv = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor gstate_in = torch::stable::new_empty(w, {args.B, 3, args.C});
    const auto scratch = scratch_like(w, wkv::gpu::scratch_of(sizes).backward);
    check_launch(wkv::gpu::backward(sizes, in(w), in(u), k.const_data_ptr(), v.const_data_ptr(), in(checkpoints),
                                    gy.const_data_ptr(), in(gstate), out(gw), out(gu), gk.mutable_data_ptr(),
                                    gv.mutable_data_ptr(), out(gstate_in), out(scratch), stream_of(k)));
    return {gw, gu, gk, gv, gstate_in};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rwkv_lab, CUDA, m) {
    m.impl("wkv_fwd", TORCH_BOX(&wkv_fwd));
    m.impl("wkv_bwd", TORCH_BOX(&wkv_bwd));
}
