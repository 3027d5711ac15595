// Entry points of the CPU kernels: raw pointers to contiguous arrays and a way to run tasks in parallel.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace wkv {

// Steps between two checkpoints of the sums; also the length of the tile that is recomputed in the backward pass.
constexpr int64_t CPU_TILE = 32;

// Calls task(begin, end, context) on disjoint ranges that cover [0, count).
using Parallel = void (*)(int64_t count, void (*task)(int64_t begin, int64_t end, void* context), void* context);

// Number is the type of k, v, y and their gradients; Sum that of everything else.
template <class Number, class Sum>
struct Inputs {
    int64_t B, T, C;
    const Sum *w, *u;       // [C]
    const Number *k, *v;    // [B,T,C]
    double log_eps, k_max;  // -infinity and infinity for none
};

// state [B,3,C] or null; y [B,T,C]; state_out [B,3,C]; checkpoints [B, ceil(T/CPU_TILE)+1, 3, C], the last row after
// the last step, or null.
template <class Number, class Sum>
void forward(const Inputs<Number, Sum>& in, const Sum* state, Number* y, Sum* state_out, Sum* checkpoints,
             Parallel parallel);

// gy [B,T,C]; gstate [B,3,C] or null; gw, gu [B,C], one row per sequence; gk, gv [B,T,C]; gstate_in [B,3,C].
template <class Number, class Sum>
void backward(const Inputs<Number, Sum>& in, const Sum* checkpoints, const Number* gy, const Sum* gstate, Sum* gw,
              Sum* gu, Number* gk, Number* gv, Sum* gstate_in, Parallel parallel);

}  // namespace wkv
