// Runs the CUDA kernels of csrc/ on the CPU: every thread of a block is a fiber, __syncthreads hands over to the next
// one.
//
// Between two barriers the threads run one after the other in an order drawn afresh each time, so that a result that
// depends on the order shows a barrier that is missing. A barrier that only some threads reach is an error. The blocks
// of a kernel run one after the other, also in an order drawn afresh.
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define WKV_DEVICE inline __attribute__((always_inline))
#define WKV_GLOBAL(threads, blocks) void
#define WKV_SHARED static

struct Index {
    int x;
};
static Index threadIdx, blockIdx;
void __syncthreads();

#include "wkv_backward.h"
#include "wkv_forward.h"

namespace {

constexpr size_t STACK = 1 << 16;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool done = false;
};

ucontext_t scheduler;
Fiber* running;
void (*body)(void*);
void* argument;

void enter() {
    body(argument);
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

// Runs one block to its end; false where a barrier was not reached by all.
bool run_block(std::mt19937& random) {
    const int threads = wkv::gpu::THREADS;
    std::vector<Fiber> fibers(threads);
    for (Fiber& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack = {fiber.stack.data(), 0, STACK};
        makecontext(&fiber.context, enter, 0);
    }
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    for (;;) {
        std::shuffle(order.begin(), order.end(), random);
        int finished = 0;
        for (const int thread : order) {
            threadIdx.x = thread;
            running = &fibers[thread];
            swapcontext(&scheduler, &running->context);
            finished += running->done;
        }
        if (finished == threads) return true;
        if (finished > 0) return false;
    }
}

template <class Kernel>
bool run_grid(int blocks, unsigned seed, Kernel kernel) {
    std::mt19937 random(seed);
    body = [](void* context) { (*static_cast<Kernel*>(context))(); };
    argument = &kernel;
    std::vector<int> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (const int block : order) {
        blockIdx.x = block;
        if (!run_block(random)) return false;
    }
    return true;
}

template <class Run>
bool with_kernel(bool half, int width, Run run) {
    using wkv::gpu::bf16;
    if (half && width == 16) return run(bf16{}, std::integral_constant<int, 16>{});
    if (half) return run(bf16{}, std::integral_constant<int, 32>{});
    if (width == 8) return run(float{}, std::integral_constant<int, 8>{});
    if (width == 16) return run(float{}, std::integral_constant<int, 16>{});
    return run(float{}, std::integral_constant<int, 32>{});
}

struct Arrays {
    int B, T, C, length;
    const float *w, *u;
    const void *k, *v;
    float log_eps, k_max;

    int segments() const { return (T + length - 1) / length; }
    int blocks(int width) const { return B * ((C + width - 1) / width) * segments(); }

    template <class Number>
    wkv::gpu::Inputs<Number> inputs() const {
        return {T,       C,    segments(), length, w, u, static_cast<const Number*>(k), static_cast<const Number*>(v),
                log_eps, k_max};
    }
};

}  // namespace

void __syncthreads() {
    Fiber* self = running;
    swapcontext(&self->context, &scheduler);
}

// Time is cut into segments of `length` steps; scratch as the launches in wkv_cuda.cu lay it out.
extern "C" bool forward(bool half, int width, unsigned seed, Arrays arrays, const float* state, void* y,
                        float* state_out, float* checkpoints, float* scratch) {
    return with_kernel(half, width, [&](auto number, auto W) {
        using Number = decltype(number);
        const auto in = arrays.inputs<Number>();
        const auto sum_up = [&] { wkv::gpu::forward_summary_kernel<Number, W>(in, scratch); };
        const auto kernel = [&] {
            wkv::gpu::forward_kernel<Number, W>(in, state, scratch, static_cast<Number*>(y), state_out, checkpoints);
        };
        return (in.segments == 1 || run_grid(arrays.blocks(W), seed, sum_up)) &&
               run_grid(arrays.blocks(W), seed + 1, kernel);
    });
}

extern "C" bool backward(bool half, int width, unsigned seed, Arrays arrays, const float* checkpoints, const void* gy,
                         const float* gstate, float* gw, float* gu, void* gk, void* gv, float* gstate_in,
                         float* scratch) {
    return with_kernel(half, width, [&](auto number, auto W) {
        using Number = decltype(number);
        const auto in = arrays.inputs<Number>();
        const int row = arrays.B * arrays.C, part = in.segments * row, blocks = arrays.blocks(W);
        const bool split = in.segments > 1;
        float *gw_to = split ? scratch + 3 * part : gw, *gu_to = split ? scratch + 4 * part : gu;
        const auto kernel = [&](auto summary) {
            wkv::gpu::backward_kernel<Number, W, summary>(in, checkpoints, static_cast<const Number*>(gy), gstate,
                                                          scratch, gw_to, gu_to, static_cast<Number*>(gk),
                                                          static_cast<Number*>(gv), gstate_in);
        };
        if (split && !run_grid(blocks, seed, [&] { kernel(std::true_type{}); })) return false;
        if (!run_grid(blocks, seed + 1, [&] { kernel(std::false_type{}); })) return false;
        return !split || run_grid((row + wkv::gpu::THREADS - 1) / wkv::gpu::THREADS, seed + 2,
                                  [&] { wkv::gpu::add_segments_kernel(row, in.C, in.segments, gw_to, gu_to, gw, gu); });
    });
}

extern "C" void layout(int64_t B, int64_t T, int64_t C, int narrowest, int steps, int64_t multiprocessors, int* found) {
    const wkv::gpu::Layout layout = wkv::gpu::layout_of(B, T, C, narrowest, steps, multiprocessors);
    found[0] = layout.width, found[1] = layout.segments, found[2] = layout.length;
}
