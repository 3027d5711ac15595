// The backward kernel: walks the tiles from the last to the first, each from the sums that the forward kernel saved
// before it.
#pragma once

#include "wkv_segments.h"

namespace wkv::gpu {

// Gradients of a sub-chunk step by step, given that of the sums after it; calls emit(t, gradients) and returns the
// gradient of the sums before it. The sums before a step are walked to afresh, so that nothing needs an array.
template <class Number, class Emit>
WKV_DEVICE Sums<float> walk_back(Sums<float> g, const Sums<float>& before, const Inputs<Number>& in, const Number* gy,
                                 int64_t offset, int steps, float w, float u, Emit emit) {
#pragma unroll 1
    for (int t = steps - 1; t >= 0; --t) {
        const int64_t here = offset + static_cast<int64_t>(t) * in.C;
        const Sums<float> s = walk(before, in.k + offset, in.v + offset, in.C, t, w, in.k_max);
        const float k = key(in.k + here, in.k_max);
        emit(t, exact_backward<Scalar>(g, s, w, u, k, widen(in.v[here]), widen(gy[here]), in.log_eps));
    }
    return g;
}

// checkpoints as from the forward kernel; gy, gk, gv [B,T,C]; gstate [B,3,C] or null; gw, gu [B,segments,C]; gstate_in
// [B,3,C]. Where time is cut, a first pass, the same kernel with SUMMARY, leaves in segment_grads [B,segments,3,C] the
// gradient of the sums before every segment but the first of its sequence, as far as it comes from within the segment.
template <class Number, int W, bool SUMMARY>
WKV_GLOBAL(THREADS, RESIDENT)
backward_kernel(Inputs<Number> in, const float* checkpoints, const Number* gy, const float* gstate,
                float* segment_grads, float* gw, float* gu, Number* gk, Number* gv, float* gstate_in) {
    constexpr int STEPS = BACKWARD_STEPS;
    using At = Place<W, STEPS>;
    WKV_SHARED Board summaries, gradients;
    WKV_SHARED Board carry[2];
    const At at(in);
    if (SUMMARY && at.segment == 0) return;
    const float w = at.inside ? in.w[at.c] : 0.0f, u = at.inside ? in.u[at.c] : 0.0f;
    const float decay = Scalar::exp(w), bonus = Scalar::exp(u), span = STEPS * w, size = u > 0.0f ? u : -u;
    const int64_t C = in.C, sequence = at.sequence(in);
    const int rows = (in.T + CHECKPOINT - 1) / CHECKPOINT + 1;
    const float* saved = checkpoints + static_cast<int64_t>(at.n) * rows * 3 * C + at.c;
    const Sums<float> none = {0.0f, 0.0f, NO_HISTORY};
    const auto recall = [&](int row) { return at.inside ? load(saved + row * 3 * C, C) : none; };

    Held<Number> k_next[STEPS] = {}, v_next[STEPS] = {}, gy_next[STEPS] = {};
    const int last_tile = at.first + (at.end - 1 - at.first) / At::TILE * At::TILE;
    int start = last_tile + at.sub * STEPS, steps = at.steps(start);
    if (steps == STEPS) {
        fetch(k_next, in.k + sequence + start * C, in.C);
        fetch(v_next, in.v + sequence + start * C, in.C);
        fetch(gy_next, gy + sequence + start * C, in.C);
    }
    Sums<float> before = recall(last_tile / CHECKPOINT);  // the sums before the tile
    Sums<float> g = none;
    if (!SUMMARY) {
        if (gstate && at.sub == 0 && at.inside) {
            g = load(gstate + static_cast<int64_t>(at.n) * 3 * C + at.c, C);
            g.p = (in.T - at.end) * w - recall(rows - 1).p;
        }
        const int later = in.segments - 1 - at.segment;
        if (later > 0)
            g = gather<W>(g, segment_grads + (at.row + 1) * 3 * C + at.c, 3 * C, at.inside ? later : 0, C,
                          in.length * w, gradients);
        if (at.sub == 0) carry[0].put(entry<W>(0), g.a, g.b, g.p);
    }
    Sums<float> own = none;
    float gw_sum = 0.0f, gu_sum = 0.0f;
    for (int tile = last_tile, side = 0; tile >= at.first; tile -= At::TILE, side ^= 1) {
        start = tile + at.sub * STEPS;
        steps = at.steps(start);
        const int64_t offset = sequence + start * C;
        Chunk<STEPS> chunk;
        float scaled[STEPS];
        summarise(chunk, k_next, v_next, decay);
#pragma unroll
        for (int t = 0; t < STEPS; ++t) scaled[t] = widen(gy_next[t]);
        if (tile > at.first && at.inside) {
            const int64_t ahead = offset - At::TILE * C;
            fetch(k_next, in.k + ahead, in.C);
            fetch(v_next, in.v + ahead, in.C);
            fetch(gy_next, gy + ahead, in.C);
        }
        const bool plain = steps == STEPS && chunk.holds(in.k_max);
        if (!plain) chunk.sums = walk(none, in.k + offset, in.v + offset, in.C, steps, w, in.k_max);
        summaries.put(threadIdx.x, chunk.sums.a, chunk.sums.b, chunk.sums.p);
        __syncthreads();

        const Sums<float> s =
            combine<W>(before.a, before.b, before.p + at.sub * span, summaries, at.sub, at.sub, -1, span);
        if (tile > at.first) before = recall((tile - At::TILE) / CHECKPOINT);
        const float m = chunk.highest;
        const bool exact = !plain || !(larger(larger(s.p, m), in.log_eps) - chunk.lowest + size <= GUARD);
        float y[STEPS], slope_sum = 0.0f;
        float a_slope = 0.0f, b_slope = 0.0f;  // d/d e^w of the sums, through the decay within the sub-chunk
        if (exact) {
            g = walk_back(none, s, in, gy, offset, steps, w, u, [](int, const StepGrad<float>&) {});
        } else {
            const float into = Scalar::exp(s.p - m), eps = Scalar::exp(in.log_eps - m);
            float a = s.a * into, b = s.b * into;
#pragma unroll
            for (int t = 0; t < STEPS; ++t) {
                const float e = chunk.e[t], ev = e * chunk.v[t];
                const float inverse = Scalar::reciprocal(tile_denominator(b, bonus, e, eps));
                y[t] = (bonus * ev + a) * inverse;
                scaled[t] *= inverse;
                slope_sum += scaled[t] * (a_slope - y[t] * b_slope);
                a_slope = decay * a_slope + a, b_slope = decay * b_slope + b;
                tile_advance(a, b, decay, e, ev);
            }
            g = {0.0f, 0.0f, -m};
#pragma unroll
            for (int t = STEPS - 1; t >= 0; --t) tile_retreat(g.a, g.b, decay, scaled[t], y[t]);
        }
        if (SUMMARY) {
            own = join<Scalar>(own, At::TILE * w, g);
            __syncthreads();
            continue;
        }
        gradients.put(threadIdx.x, g.a, g.b, g.p);
        __syncthreads();

        const int c = entry<W>(0), end = at.end < tile + At::TILE ? at.end : tile + At::TILE;
        const int left = end - start - steps > 0 ? end - start - steps : 0;
        g = combine<W>(carry[side].a[c], carry[side].b[c], carry[side].scale[c] + left * w, gradients, at.sub,
                       At::SUBCHUNKS - 1 - at.sub, 1, span);
        if (exact) {
            g = walk_back(g, s, in, gy, offset, steps, w, u, [&](int t, const StepGrad<float>& step) {
                gw_sum += step.decay, gu_sum += step.bonus;
                const int64_t here = offset + t * C;
                narrow(gk[here], widen(in.k[here]) > in.k_max ? 0.0f : step.k);
                narrow(gv[here], step.v);
            });
        } else {
            const float lift = Scalar::exp(g.p + m);  // at most e^GUARD, as on the CPU
            float ga = g.a * lift, gb = g.b * lift;
            gw_sum += decay * (slope_sum + ga * a_slope + gb * b_slope);
#pragma unroll
            for (int t = STEPS - 1; t >= 0; --t) {
                const StepGrad<float> step =
                    tile_backward(ga, gb, decay, chunk.e[t], bonus * chunk.e[t], chunk.v[t], y[t], scaled[t]);
                gu_sum += step.bonus;
                narrow(gk[offset + t * C], step.k);
                narrow(gv[offset + t * C], step.v);
            }
            g = {ga, gb, -m};
        }
        if (at.sub == 0) carry[side ^ 1].put(c, g.a, g.b, g.p);
    }
    if (SUMMARY) {
        gradients.put(threadIdx.x, own.a, own.b, own.p);
        __syncthreads();
        own = combine<W>(0.0f, 0.0f, NO_HISTORY, gradients, -1, At::SUBCHUNKS, 1, span);
        if (at.sub == 0 && at.inside) save(segment_grads + at.row * 3 * C + at.c, own, C);
        return;
    }
    if (at.sub == 0 && at.segment == 0 && at.inside) {
        const float lift = Scalar::exp(g.p + before.p), ga = g.a * lift, gb = g.b * lift;
        float* to = gstate_in + static_cast<int64_t>(at.n) * 3 * C + at.c;
        to[0] = ga, to[C] = gb, to[2 * C] = ga * before.a + gb * before.b;
    }
    __syncthreads();
    summaries.put(threadIdx.x, gw_sum, gu_sum, 0.0f);
    __syncthreads();
    if (at.sub == 0 && at.inside) {
        for (int sub = 1; sub < At::SUBCHUNKS; ++sub)
            gw_sum += summaries.a[entry<W>(sub)], gu_sum += summaries.b[entry<W>(sub)];
        gw[at.row * C + at.c] = gw_sum;
        gu[at.row * C + at.c] = gu_sum;
    }
}

}  // namespace wkv::gpu
