// The rwkv_lab::decode_step operator, bound through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <limits>

#include "checks.h"
#include "decode_cpu.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using wkv_bind::check_like;

void run_parallel(int64_t count, void (*task)(int64_t, int64_t, void*), void* context) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, task, context));
}

// plan: C, F, V, L, kind, whether pre-norm, offset of the head; then the layers as in decode_cpu.h.
std::tuple<Tensor, Tensor, Tensor> decode_step(Tensor store, Tensor plan, Tensor embedding, Tensor idx, Tensor state,
                                          double ln_eps, double den_eps, std::optional<double> k_max) {
    STD_TORCH_CHECK(plan.dim() == 1 && plan.size(0) >= decode::HEADER, "decode: the plan is too short");
    check_like(plan, {plan.size(0)}, ScalarType::Long, store, "plan");
    const auto* numbers = static_cast<const int64_t*>(plan.const_data_ptr());
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const decode::Model model = {numbers[0],
                                 numbers[1],
                                 numbers[2],
                                 numbers[3],
                                 static_cast<decode::Kind>(numbers[4]),
                                 numbers[5],
                                 numbers[6],
                                 reinterpret_cast<const decode::Layer*>(numbers + decode::HEADER),
                                 static_cast<const char*>(store.const_data_ptr()),
                                 static_cast<float>(ln_eps),
                                 den_eps > 0 ? std::log(den_eps) : -infinity,
                                 k_max.value_or(infinity)};
    const int64_t C = model.C, V = model.V, L = model.L;
    STD_TORCH_CHECK(C > 0 && model.F > 0 && V > 0 && L > 0 && numbers[4] >= 0 && numbers[4] <= 2 &&
                        plan.size(0) == decode::HEADER + L * decode::LAYER,
                    "decode: the plan does not fit together");
    check_like(store, {store.size(0)}, ScalarType::Byte, plan, "store");
    const int64_t reach = decode::reach(model);
    STD_TORCH_CHECK(reach >= 0 && reach <= store.size(0), "decode: the plan reaches outside the store");
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(model.store) % 64 == 0, "decode: the store is not aligned");
    check_like(embedding, {V, C}, ScalarType::Float, store, "embedding");
    check_like(idx, {1}, ScalarType::Long, store, "idx");
    check_like(state, {1, L, 5, C}, ScalarType::Float, store, "state");
    const int64_t token = *static_cast<const int64_t*>(idx.const_data_ptr());
    STD_TORCH_CHECK(token >= 0 && token < V, "decode: token ", token, " is outside the vocabulary of ", V);
    Tensor state_out = torch::stable::new_empty(state, {1, L, 5, C});
    Tensor x = torch::stable::new_empty(state, {1, C});
    Tensor logits = torch::stable::new_empty(state, {1, V});
    decode::step(model, static_cast<const float*>(embedding.const_data_ptr()) + token * C,
                 static_cast<const float*>(state.const_data_ptr()), static_cast<float*>(state_out.data_ptr()),
                 static_cast<float*>(x.data_ptr()), static_cast<float*>(logits.data_ptr()), run_parallel);
    return {logits, x, state_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rwkv_lab, m) {
    m.def(
        "decode_step(Tensor store, Tensor plan, Tensor embedding, Tensor idx, Tensor state, float ln_eps, "
        "float den_eps, float? k_max) -> (Tensor logits, Tensor x, Tensor state_out)");
}

STABLE_TORCH_LIBRARY_IMPL(rwkv_lab, CPU, m) { m.impl("decode_step", TORCH_BOX(&decode_step)); }
