// Launches the kernels of the WKV scan: chooses how many channels a block takes.
#include "wkv_cuda.h"

#include <cuda_runtime.h>

#include "wkv_backward.h"
#include "wkv_forward.h"

namespace wkv::gpu {
namespace {

static_assert(CHECKPOINT == CHECKPOINT_STEPS);

int multiprocessors() {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}

int64_t blocks_of(const Sizes& sizes, int width) { return sizes.B * ((sizes.C + width - 1) / width); }

// Calls launch(width) with the widest block that still gives every multiprocessor two; a row of a block is at least one
// 32-byte sector of memory.
template <int Narrowest, class Launch>
void with_width(const Sizes& sizes, Launch launch) {
    const int64_t enough = 2 * multiprocessors();
    if (blocks_of(sizes, 32) >= enough) return launch(std::integral_constant<int, 32>{});
    if (Narrowest == 16 || blocks_of(sizes, 16) >= enough) return launch(std::integral_constant<int, 16>{});
    launch(std::integral_constant<int, Narrowest>{});
}

template <class Number>
Inputs<Number> inputs_of(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v) {
    return {static_cast<int>(sizes.T),
            static_cast<int>(sizes.C),
            w,
            u,
            static_cast<const Number*>(k),
            static_cast<const Number*>(v),
            static_cast<float>(sizes.log_eps),
            static_cast<float>(sizes.k_max)};
}

template <class Run>
const char* with_type(Type type, Run run) {
    if (type == Type::float32)
        run(float{});
    else if (type == Type::bfloat16)
        run(bf16{});
    else
        run(fp16{});
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* forward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v, const float* state,
                    void* y, float* state_out, float* checkpoints, void* stream) {
    return with_type(sizes.type, [&](auto number) {
        using Number = decltype(number);
        const auto in = inputs_of<Number>(sizes, w, u, k, v);
        with_width<sizeof(Number) == 2 ? 16 : 8>(sizes, [&](auto width) {
            constexpr int W = decltype(width)::value;
            forward_kernel<Number, W><<<blocks_of(sizes, W), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
                in, state, static_cast<Number*>(y), state_out, checkpoints);
        });
    });
}

const char* backward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v,
                     const float* checkpoints, const void* gy, const float* gstate, float* gw, float* gu, void* gk, void* gv,
                     float* gstate_in, void* stream) {
    return with_type(sizes.type, [&](auto number) {
        using Number = decltype(number);
        const auto in = inputs_of<Number>(sizes, w, u, k, v);
        with_width<sizeof(Number) == 2 ? 16 : 8>(sizes, [&](auto width) {
            constexpr int W = decltype(width)::value;
            backward_kernel<Number, W><<<blocks_of(sizes, W), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
                in, checkpoints, static_cast<const Number*>(gy), gstate, gw, gu, static_cast<Number*>(gk),
                static_cast<Number*>(gv), gstate_in);
        });
    });
}

}  // namespace wkv::gpu
