// How the WKV scan is laid over a card: the channels of a block, and the segments into which time is cut.
#pragma once

#include <cstdint>

namespace wkv::gpu {

constexpr int THREADS = 256;
constexpr int RESIDENT = 2;  // blocks that a multiprocessor holds at once
constexpr int WIDEST = 32;

// A block owns `width` channels of a segment: `length` steps, whole tiles; only the last segment may be shorter.
struct Layout {
    int width, segments, length;
};

inline int64_t rounds(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Time is cut only where few channels would leave most of the card idle for long: the inputs are then read twice. Wide
// blocks exchange less among their threads, so where time is cut anyway they are as wide as can be. `steps` are those
// that a thread takes at a time.
inline Layout layout_of(int64_t B, int64_t T, int64_t C, int narrowest, int steps, int64_t multiprocessors) {
    const int64_t enough = RESIDENT * multiprocessors;
    const auto blocks = [&](int width) { return B * rounds(C, width); };
    const auto tile = [&](int width) { return THREADS / width * steps; };
    int width = WIDEST;
    while (width > narrowest && blocks(width) < enough) width /= 2;
    if (4 * blocks(width) > enough || T < 8 * tile(width)) return {width, 1, static_cast<int>(T)};
    const int64_t tiles = rounds(T, tile(WIDEST)), room = enough / blocks(WIDEST);
    const int64_t run = rounds(tiles, room < tiles / 2 ? room : tiles / 2) * tile(WIDEST);
    return {WIDEST, static_cast<int>(rounds(T, run)), static_cast<int>(run)};
}

}  // namespace wkv::gpu
