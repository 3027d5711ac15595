// What joins the segments into which time is cut. A first kernel sums up every segment from nothing; each block of the
// second gathers what the other segments hand to its own, so that none waits for another.
#pragma once

#include "wkv_kernels.h"

namespace wkv::gpu {

// The sums, or their gradient, at one end of this block's segment: `own`, and those of `count` whole segments of
// log-decay `span`, from `nearest` on every `stride` floats. Of use to the threads of sub-chunk 0.
template <int W>
WKV_DEVICE Sums<float> gather(const Sums<float>& own, const float* nearest, int64_t stride, int count, int64_t C,
                              float span, Board& board) {
    constexpr int SUBCHUNKS = THREADS / W;
    const int sub = threadIdx.x / W;
    Sums<float> sum = {0.0f, 0.0f, NO_HISTORY};
#pragma unroll 4
    for (int i = (count - 1) / SUBCHUNKS * SUBCHUNKS + sub; i >= 0; i -= SUBCHUNKS) {
        const float* from = nearest + i * stride;
        if (i < count) sum = join<Scalar>(sum, SUBCHUNKS * span, {from[0], from[C], from[2 * C]});
    }
    board.put(threadIdx.x, sum.a, sum.b, sum.p);
    __syncthreads();
    return combine<W>(own.a, own.b, own.p, board, -1, SUBCHUNKS, 1, span);
}

// summaries [B,segments,3,C]: the sums over every segment but the last of its sequence, which nothing follows.
template <class Number, int W>
WKV_GLOBAL(THREADS, RESIDENT)
forward_summary_kernel(Inputs<Number> in, float* summaries) {
    constexpr int STEPS = FORWARD_STEPS;
    using At = Place<W, STEPS>;
    WKV_SHARED Board board;
    const At at(in);
    if (at.segment == in.segments - 1) return;
    const float w = at.inside ? in.w[at.c] : 0.0f, decay = Scalar::exp(w);
    int64_t offset = at.sequence(in) + (at.first + at.sub * STEPS) * static_cast<int64_t>(in.C);
    const int64_t tile = At::TILE * static_cast<int64_t>(in.C);

    Held<Number> k_next[STEPS] = {}, v_next[STEPS] = {};
    if (at.inside) {
        fetch(k_next, in.k + offset, in.C);
        fetch(v_next, in.v + offset, in.C);
    }
    Sums<float> sum = {0.0f, 0.0f, NO_HISTORY};
    for (int left = in.length; left > 0; left -= At::TILE, offset += tile) {
        Chunk<STEPS> chunk;
        summarise(chunk, k_next, v_next, decay);
        chunk.sums = as_recurrence(chunk.sums, k_next, w);
        if (at.inside && left > At::TILE) {
            fetch(k_next, in.k + offset + tile, in.C);
            fetch(v_next, in.v + offset + tile, in.C);
        }
        if (!chunk.holds(in.k_max))
            chunk.sums =
                walk(Sums<float>{0.0f, 0.0f, NO_HISTORY}, in.k + offset, in.v + offset, in.C, STEPS, w, in.k_max);
        sum = join<Scalar>(sum, At::TILE * w, chunk.sums);
    }
    board.put(threadIdx.x, sum.a, sum.b, sum.p);
    __syncthreads();
    if (at.sub > 0 || !at.inside) return;
    sum = combine<W>(0.0f, 0.0f, NO_HISTORY, board, At::SUBCHUNKS, At::SUBCHUNKS, -1, STEPS * w);
    save(summaries + at.row * 3 * in.C + at.c, sum, in.C);
}

// total[n,c] = sum over the segments of part[n,segment,c], in their order.
static WKV_GLOBAL(THREADS, RESIDENT) add_segments_kernel(int64_t size, int C, int segments, const float* gw_parts,
                                                         const float* gu_parts, float* gw, float* gu) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= size) return;
    const int64_t first = i / C * segments * C + i % C;
    float gw_sum = 0.0f, gu_sum = 0.0f;
#pragma unroll 4
    for (int segment = 0; segment < segments; ++segment) {
        gw_sum += gw_parts[first + static_cast<int64_t>(segment) * C];
        gu_sum += gu_parts[first + static_cast<int64_t>(segment) * C];
    }
    gw[i] = gw_sum, gu[i] = gu_sum;
}

}  // namespace wkv::gpu
