// Runs the CUDA kernels of csrc/ on the CPU: every thread of a block is a fiber, __syncthreads hands over to the next one.
//
// Between two barriers the threads run one after the other in an order drawn afresh each time, so that a result that depends on
// the order shows a barrier that is missing. A barrier that only some threads reach is an error.
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
    for (int block = 0; block < blocks; ++block) {
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

template <class Number>
wkv::gpu::Inputs<Number> inputs(int T, int C, const float* w, const float* u, const void* k, const void* v, float log_eps,
                                float k_max) {
    return {T, C, w, u, static_cast<const Number*>(k), static_cast<const Number*>(v), log_eps, k_max};
}

}  // namespace

void __syncthreads() {
    Fiber* self = running;
    swapcontext(&self->context, &scheduler);
}

extern "C" bool forward(bool half, int width, unsigned seed, int B, int T, int C, float log_eps, float k_max, const float* w,
                        const float* u, const void* k, const void* v, const float* state, void* y, float* state_out,
                        float* checkpoints) {
    return with_kernel(half, width, [&](auto number, auto W) {
        using Number = decltype(number);
        return run_grid(B * ((C + W - 1) / W), seed, [&] {
            wkv::gpu::forward_kernel<Number, W>(inputs<Number>(T, C, w, u, k, v, log_eps, k_max), state,
                                                static_cast<Number*>(y), state_out, checkpoints);
        });
    });
}

extern "C" bool backward(bool half, int width, unsigned seed, int B, int T, int C, float log_eps, float k_max, const float* w,
                         const float* u, const void* k, const void* v, const float* checkpoints, const void* gy,
                         const float* gstate, float* gw, float* gu, void* gk, void* gv, float* gstate_in) {
    return with_kernel(half, width, [&](auto number, auto W) {
        using Number = decltype(number);
        return run_grid(B * ((C + W - 1) / W), seed, [&] {
            wkv::gpu::backward_kernel<Number, W>(inputs<Number>(T, C, w, u, k, v, log_eps, k_max), checkpoints,
                                                 static_cast<const Number*>(gy), gstate, gw, gu, static_cast<Number*>(gk),
                                                 static_cast<Number*>(gv), gstate_in);
        });
    });
}
