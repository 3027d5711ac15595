// The rwkv_lab::wkv operators and their CPU implementation, bound through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "wkv_cpu.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using wkv_bind::Arguments;
using wkv_bind::check_arguments;
using wkv_bind::check_like;

void run_parallel(int64_t count, void (*task)(int64_t, int64_t, void*), void* context) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, task, context));
}

template <class Number, class Sum>
wkv::Inputs<Number, Sum> inputs_of(const Arguments& args) {
    return {args.B,
            args.T,
            args.C,
            static_cast<const Sum*>(args.w.const_data_ptr()),
            static_cast<const Sum*>(args.u.const_data_ptr()),
            static_cast<const Number*>(args.k.const_data_ptr()),
            static_cast<const Number*>(args.v.const_data_ptr()),
            args.log_eps(),
            args.highest_k()};
}

template <class Sum>
Sum* pointer_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<Sum*>(tensor->data_ptr()) : nullptr;
}

// Calls run(Number{}, Sum{}) for the pair of types that belongs to k.
template <class Run>
void with_types(ScalarType type, Run run) {
    if (type == ScalarType::Float) return run(float{}, float{});
    if (type == ScalarType::BFloat16) return run(wkv::bf16{}, float{});
    STD_TORCH_CHECK(type == ScalarType::Double, "wkv on the CPU takes float32, float64 or bfloat16");
    run(double{}, double{});
}

std::tuple<Tensor, Tensor, Tensor> wkv_fwd(Tensor w, Tensor u, Tensor k, Tensor v, std::optional<Tensor> state,
                                           double den_eps, std::optional<double> k_max, bool keep) {
    const Arguments args = check_arguments(w, u, k, v, den_eps, k_max);
    if (state) check_like(*state, {args.B, 3, args.C}, w.scalar_type(), k, "state");
    const int64_t rows = keep ? (args.T + wkv::CPU_TILE - 1) / wkv::CPU_TILE + 1 : 0;
    Tensor y = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor state_out = torch::stable::new_empty(w, {args.B, 3, args.C});
    Tensor checkpoints = torch::stable::new_empty(w, {args.B, rows, 3, args.C});
    with_types(k.scalar_type(), [&](auto number, auto sum) {
        using Number = decltype(number);
        using Sum = decltype(sum);
        wkv::forward(inputs_of<Number, Sum>(args), pointer_or_null<Sum>(state), static_cast<Number*>(y.data_ptr()),
                     static_cast<Sum*>(state_out.data_ptr()),
                     keep ? static_cast<Sum*>(checkpoints.data_ptr()) : nullptr, run_parallel);
    });
    return {y, state_out, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> wkv_bwd(Tensor w, Tensor u, Tensor k, Tensor v, Tensor checkpoints,
                                                           Tensor gy, std::optional<Tensor> gstate, double den_eps,
                                                           std::optional<double> k_max) {
    const Arguments args = check_arguments(w, u, k, v, den_eps, k_max);
    const int64_t rows = (args.T + wkv::CPU_TILE - 1) / wkv::CPU_TILE + 1;
    check_like(checkpoints, {args.B, rows, 3, args.C}, w.scalar_type(), k, "checkpoints");
    check_like(gy, {args.B, args.T, args.C}, k.scalar_type(), k, "gy");
    if (gstate) check_like(*gstate, {args.B, 3, args.C}, w.scalar_type(), k, "gstate");
    Tensor gw = torch::stable::new_empty(w, {args.B, args.C});
    Tensor gu = torch::stable::new_empty(w, {args.B, args.C});
    Tensor gk = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor gv = torch::stable::new_empty(k, {args.B, args.T, args.C});
    Tensor gstate_in = torch::stable::new_empty(w, {args.B, 3, args.C});
    with_types(k.scalar_type(), [&](auto number, auto sum) {
        using Number = decltype(number);
        using Sum = decltype(sum);
        wkv::backward(inputs_of<Number, Sum>(args), static_cast<const Sum*>(checkpoints.const_data_ptr()),
                      static_cast<const Number*>(gy.const_data_ptr()), pointer_or_null<Sum>(gstate),
                      static_cast<Sum*>(gw.data_ptr()), static_cast<Sum*>(gu.data_ptr()),
                      static_cast<Number*>(gk.data_ptr()), static_cast<Number*>(gv.data_ptr()),
                      static_cast<Sum*>(gstate_in.data_ptr()), run_parallel);
    });
    return {gw, gu, gk, gv, gstate_in};
}

}  // namespace

// gw and gu come back as one row per sequence, [B,C].
STABLE_TORCH_LIBRARY(rwkv_lab, m) {
    m.def(
        "wkv_fwd(Tensor w, Tensor u, Tensor k, Tensor v, Tensor? state, float den_eps, float? k_max, bool keep) -> "
        "(Tensor y, Tensor state_out, Tensor checkpoints)");
    m.def(
        "wkv_bwd(Tensor w, Tensor u, Tensor k, Tensor v, Tensor checkpoints, Tensor gy, Tensor? gstate, float den_eps, "
        "float? k_max) -> (Tensor gw, Tensor gu, Tensor gk, Tensor gv, Tensor gstate_in)");
}

STABLE_TORCH_LIBRARY_IMPL(rwkv_lab, CPU, m) {
    m.impl("wkv_fwd", TORCH_BOX(&wkv_fwd));
    m.impl("wkv_bwd", TORCH_BOX(&wkv_bwd));
}
