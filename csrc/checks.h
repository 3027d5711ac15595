// What both bindings check before they hand raw pointers to a kernel.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>

namespace wkv_bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Arguments {
    Tensor w, u, k, v;
    double den_eps;
    std::optional<double> k_max;
    int64_t B, T, C;

    double log_eps() const { return den_eps > 0 ? std::log(den_eps) : -std::numeric_limits<double>::infinity(); }
    double highest_k() const { return k_max.value_or(std::numeric_limits<double>::infinity()); }
};

// Throws unless `x` is a contiguous tensor of this shape and type on the device of `beside`.
inline void check_like(const Tensor& x, std::initializer_list<int64_t> shape, ScalarType type, const Tensor& beside,
                       const char* name) {
    STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), "wkv: ", name, " has ", x.dim(), " dimensions, not ",
                    shape.size());
    int64_t i = 0;
    for (const int64_t size : shape) {
        STD_TORCH_CHECK(x.size(i) == size, "wkv: size ", i, " of ", name, " is ", x.size(i), ", not ", size);
        ++i;
    }
    STD_TORCH_CHECK(x.scalar_type() == type, "wkv: ", name, " has the wrong type");
    STD_TORCH_CHECK(x.device() == beside.device(), "wkv: ", name, " is on another device than k");
    STD_TORCH_CHECK(x.is_contiguous(), "wkv: ", name, " is not contiguous");
}

inline Arguments check_arguments(const Tensor& w, const Tensor& u, const Tensor& k, const Tensor& v, double den_eps,
                                 std::optional<double> k_max) {
    STD_TORCH_CHECK(k.dim() == 3, "wkv: k has ", k.dim(), " dimensions, not 3");
    const Arguments args = {w, u, k, v, den_eps, k_max, k.size(0), k.size(1), k.size(2)};
    const ScalarType sums = k.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_like(k, {args.B, args.T, args.C}, k.scalar_type(), k, "k");
    check_like(v, {args.B, args.T, args.C}, k.scalar_type(), k, "v");
    check_like(w, {args.C}, sums, k, "w");
    check_like(u, {args.C}, sums, k, "u");
    STD_TORCH_CHECK(den_eps >= 0, "wkv: den_eps is negative");
    return args;
}

}  // namespace wkv_bind
