// Weights to the bytes of one of ggml's block types, LANES blocks at a time. TYPE is its name.
#include <type_traits>

#include "kquant.h"
#include "legacy.h"
#include "symmetric.h"

struct Task {
    const float *x;           // [n_blocks, SIZE]
    const float *importance;  // of block b at importance + b / per_row · stride + b % per_row · SIZE; may be null
    const float *row_square;  // the mean square of each row; null for the types that do not weigh by it
    uint8_t *out;             // [n_blocks, BYTES]
    int64_t first, n_blocks;  // b of the first block
    int64_t per_row, stride;
    Trials trials;
    int32_t best;
    float largest;  // which is found: the largest magnitude of the weights; no number if one of them is none
};

inline float largest_of(I magnitudes) {
    int32_t of[LANES], largest = 0;
    memcpy(of, &magnitudes, sizeof of);
    for (int32_t each : of) largest = each > largest ? each : largest;
    float found;
    memcpy(&found, &largest, sizeof found);
    return found;
}

// whether it is a type that goes block by block, and then does so
template <class T, class = void>
struct ByBlock {
    static bool encode(Task *) { return false; }
};
template <class T>
struct ByBlock<T, std::void_t<typename T::Plain>> {
    static bool encode(Task *task) {
        if (task->importance || task->best) return false;
        task->largest = largest_of(encode_blocks<typename T::Plain, T::BYTES>(task->x, task->n_blocks, task->out));
        return true;
    }
};

extern "C" void hubquant_encode(Task *task) {
    constexpr int SIZE = TYPE::SIZE, BYTES = TYPE::BYTES;
    if (ByBlock<TYPE>::encode(task)) return;
    Blocks<SIZE> blocks;
    blocks.weighted = task->importance != nullptr, blocks.best = task->best, blocks.trials = task->trials;
    Row rows[BYTES + LANES] = {};
    I largest{};
    for (int64_t start = 0; start < task->n_blocks; start += LANES) {
        const float *x[LANES], *importance[LANES];
        float square[LANES] = {};
        uint8_t *out[LANES], unwanted[BYTES];
        for (int j = 0; j < LANES; j++) {  // what is missing at the end is made up by the block before
            bool wanted = start + j < task->n_blocks;
            int64_t i = wanted ? start + j : start;
            x[j] = task->x + i * SIZE, out[j] = wanted ? task->out + i * BYTES : unwanted;
            if (blocks.weighted) {
                int64_t row = (task->first + i) / task->per_row, place = (task->first + i) % task->per_row;
                importance[j] = task->importance + row * task->stride + place * SIZE;
                square[j] = task->row_square ? task->row_square[row] : 0.0f;
            }
        }
        load<SIZE>(x, blocks.x);
        for (int i = 0; i < SIZE; i++) largest = greater(largest, magnitude_bits(blocks.x[i]));
        if (blocks.weighted) load<SIZE>(importance, blocks.importance);
        memcpy(&blocks.row_square, square, sizeof square);
        TYPE::encode(blocks, rows);
        store<BYTES>(rows, out);
    }
    task->largest = largest_of(largest);
}
