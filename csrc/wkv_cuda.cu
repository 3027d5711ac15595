// Launches the kernels of the WKV scan in the layout that suits the card.
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

template <class Number>
constexpr int NARROWEST = 32 / sizeof(Number);  // a row of the block is then one sector of memory

int narrowest(Type type) { return type == Type::float32 ? NARROWEST<float> : NARROWEST<bf16>; }

Layout layout(const Sizes& sizes, int steps) {
    return layout_of(sizes.B, sizes.T, sizes.C, narrowest(sizes.type), steps, multiprocessors());
}

// Calls launch(inputs, width, blocks) with the type of the inputs and the width of a block as types.
template <class Launch>
const char* run(const Sizes& sizes, const Layout& layout, const float* w, const float* u, const void* k, const void* v,
                Launch launch) {
    const int64_t blocks = sizes.B * rounds(sizes.C, layout.width) * layout.segments;
    const auto with_type = [&](auto number) {
        using Number = decltype(number);
        const Inputs<Number> in = {static_cast<int>(sizes.T),
                                   static_cast<int>(sizes.C),
                                   layout.segments,
                                   layout.length,
                                   w,
                                   u,
                                   static_cast<const Number*>(k),
                                   static_cast<const Number*>(v),
                                   static_cast<float>(sizes.log_eps),
                                   static_cast<float>(sizes.k_max)};
        if (layout.width == 32) return launch(in, std::integral_constant<int, 32>{}, blocks);
        if (layout.width == 16) return launch(in, std::integral_constant<int, 16>{}, blocks);
        if constexpr (NARROWEST<Number> == 8) launch(in, std::integral_constant<int, 8>{}, blocks);
    };
    if (sizes.type == Type::float32)
        with_type(float{});
    else if (sizes.type == Type::bfloat16)
        with_type(bf16{});
    else
        with_type(fp16{});
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

Scratch scratch_of(const Sizes& sizes) {
    const int64_t row = sizes.B * sizes.C;
    const int64_t before = layout(sizes, FORWARD_STEPS).segments, after = layout(sizes, BACKWARD_STEPS).segments;
    return {before > 1 ? before * 3 * row : 0, after > 1 ? after * 5 * row : 0};
}

const char* forward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v,
                    const float* state, void* y, float* state_out, float* checkpoints, float* scratch, void* stream) {
    const Layout cut = layout(sizes, FORWARD_STEPS);
    const auto on = static_cast<cudaStream_t>(stream);
    return run(sizes, cut, w, u, k, v, [&](auto in, auto width, int64_t blocks) {
        using Number = std::remove_const_t<std::remove_pointer_t<decltype(in.k)>>;
        constexpr int W = decltype(width)::value;
        if (cut.segments > 1) forward_summary_kernel<Number, W><<<blocks, THREADS, 0, on>>>(in, scratch);
        forward_kernel<Number, W>
            <<<blocks, THREADS, 0, on>>>(in, state, scratch, static_cast<Number*>(y), state_out, checkpoints);
    });
}

const char* backward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v,
                     const float* checkpoints, const void* gy, const float* gstate, float* gw, float* gu, void* gk,
                     void* gv, float* gstate_in, float* scratch, void* stream) {
    const Layout cut = layout(sizes, BACKWARD_STEPS);
    const auto on = static_cast<cudaStream_t>(stream);
    return run(sizes, cut, w, u, k, v, [&](auto in, auto width, int64_t blocks) {
        using Number = std::remove_const_t<std::remove_pointer_t<decltype(in.k)>>;
        constexpr int W = decltype(width)::value;
        const int64_t row = sizes.B * sizes.C, part = cut.segments * row;
        const bool split = cut.segments > 1;
        float *gw_to = split ? scratch + 3 * part : gw, *gu_to = split ? scratch + 4 * part : gu;
        const auto launch = [&](auto kernel) {
            kernel<<<blocks, THREADS, 0, on>>>(in, checkpoints, static_cast<const Number*>(gy), gstate, scratch, gw_to,
                                               gu_to, static_cast<Number*>(gk), static_cast<Number*>(gv), gstate_in);
        };
        if (split) launch(backward_kernel<Number, W, true>);
        launch(backward_kernel<Number, W, false>);
        if (split)
            add_segments_kernel<<<rounds(row, THREADS), THREADS, 0, on>>>(row, in.C, in.segments, gw_to, gu_to, gw, gu);
    });
}

}  // namespace wkv::gpu
