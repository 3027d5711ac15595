// The forward kernel: y, the state after the last step, and the sums at every checkpoint for the backward kernel.
#pragma once

#include "wkv_segments.h"

namespace wkv::gpu {

// checkpoints [B, ceil(T/CHECKPOINT)+1, 3, C], the state after the last step in the last row, or null; state [B,3,C] or
// null; before as from forward_summary_kernel where time is cut.
template <class Number, int W>
WKV_GLOBAL(THREADS, RESIDENT)
forward_kernel(Inputs<Number> in, const float* state, const float* before, Number* y, float* state_out,
               float* checkpoints) {
    constexpr int STEPS = FORWARD_STEPS;
    using At = Place<W, STEPS>;
    WKV_SHARED Board summaries[2];
    WKV_SHARED Board carry[2];
    const At at(in);
    const float w = at.inside ? in.w[at.c] : 0.0f, u = at.inside ? in.u[at.c] : 0.0f;
    const float decay = Scalar::exp(w), bonus = Scalar::exp(u), span = STEPS * w, size = u > 0.0f ? u : -u;
    const int64_t C = in.C, sequence = at.sequence(in);
    const int rows = (in.T + CHECKPOINT - 1) / CHECKPOINT + 1;

    Held<Number> k_next[STEPS] = {}, v_next[STEPS] = {};
    int start = at.first + at.sub * STEPS, steps = at.steps(start);
    if (steps == STEPS) {
        fetch(k_next, in.k + sequence + start * C, in.C);
        fetch(v_next, in.v + sequence + start * C, in.C);
    }
    Sums<float> s = {0.0f, 0.0f, NO_HISTORY};
    if (state && at.sub == 0 && at.inside) s = load(state + static_cast<int64_t>(at.n) * 3 * C + at.c, C);
    if (at.segment > 0) {
        s.p += at.first * w;
        s = gather<W>(s, before + (at.row - 1) * 3 * C + at.c, -3 * C, at.inside ? at.segment : 0, C, in.length * w,
                      summaries[1]);
    }
    if (at.sub == 0) carry[0].put(entry<W>(0), s.a, s.b, s.p);
    for (int tile = at.first, side = 0; tile < at.end; tile += At::TILE, side ^= 1) {
        start = tile + at.sub * STEPS;
        steps = at.steps(start);
        const int64_t offset = sequence + start * C;
        Chunk<STEPS> chunk;
        summarise(chunk, k_next, v_next, decay);
        chunk.sums = as_recurrence(chunk.sums, k_next, w);
        if (at.steps(start + At::TILE) == STEPS) {
            fetch(k_next, in.k + offset + At::TILE * C, in.C);
            fetch(v_next, in.v + offset + At::TILE * C, in.C);
        }
        const bool plain = steps == STEPS && chunk.holds(in.k_max);
        if (!plain)
            chunk.sums =
                walk(Sums<float>{0.0f, 0.0f, NO_HISTORY}, in.k + offset, in.v + offset, in.C, steps, w, in.k_max);
        summaries[side].put(threadIdx.x, chunk.sums.a, chunk.sums.b, chunk.sums.p);
        __syncthreads();

        const int c = entry<W>(0);
        s = combine<W>(carry[side].a[c], carry[side].b[c], carry[side].scale[c] + at.sub * span, summaries[side],
                       at.sub, at.sub, -1, span);
        if (checkpoints && steps > 0 && start % CHECKPOINT == 0)
            save(checkpoints + (static_cast<int64_t>(at.n) * rows + start / CHECKPOINT) * 3 * C + at.c, s, C);
        const float m = chunk.highest;
        const bool last = steps > 0 && start + steps == in.T;
        if (!plain || !(larger(larger(s.p, m), in.log_eps) - chunk.lowest + size <= GUARD)) {
#pragma unroll 1
            for (int t = 0; t < steps; ++t) {
                const float k = key(in.k + offset + t * C, in.k_max), v = widen(in.v[offset + t * C]);
                narrow(y[offset + t * C], exact_output<Scalar>(s, u, k, v, in.log_eps).y);
                s = exact_advance<Scalar>(s, w, k, v);
            }
        } else {
            const float into = Scalar::exp(s.p - m), eps = Scalar::exp(in.log_eps - m);
            float a = s.a * into, b = s.b * into;
#pragma unroll
            for (int t = 0; t < STEPS; ++t) {
                const float e = chunk.e[t], ev = e * chunk.v[t];
                narrow(y[offset + t * C], (bonus * ev + a) * Scalar::reciprocal(tile_denominator(b, bonus, e, eps)));
                tile_advance(a, b, decay, e, ev);
            }
            if (last || at.sub == At::SUBCHUNKS - 1) s = join<Scalar>(s, span, chunk.sums);
        }
        if (at.sub == At::SUBCHUNKS - 1) carry[side ^ 1].put(c, s.a, s.b, s.p);
        if (last) {
            save(state_out + static_cast<int64_t>(at.n) * 3 * C + at.c, s, C);
            if (checkpoints) save(checkpoints + (static_cast<int64_t>(at.n) * rows + rows - 1) * 3 * C + at.c, s, C);
        }
    }
}

}  // namespace wkv::gpu
