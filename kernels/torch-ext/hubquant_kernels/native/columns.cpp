// GPTQ's columns, the losses of its grids, and coordinate descent, LANES rows of the matrix side by side: rows do not know of each other.
#include "lanes.h"
#include <algorithm>
#include <vector>

// n numbers of LANES rows that lie `stride` apart, turned to columns [n, LANES]; rows beyond the last one repeat it.
static void load(const float *matrix, int64_t first, int64_t last, int64_t n, int64_t stride, F *strip) {
    float *numbers = (float *)strip;
    for (int j = 0; j < LANES; j++) {
        const float *row = matrix + std::min(first + j, last - 1) * stride;
        for (int64_t i = 0; i < n; i++) numbers[i * LANES + j] = row[i];
    }
}

// What is left of the columns from..n when their shares of an error are taken off.
static void follow(F *left, const float *shares, F error, int64_t from, int64_t n) {
    for (int64_t k = from; k < n; k++) left[k] = left[k] - error * shares[k];
}

// The place of the codebook's value nearest to x, the upper one of two as near, and the value.
static F nearest(F x, const float *book, int size, F *value) {
    F code = 0.0f;
    *value = book[0];
    for (int next = 1; next < size; next++) {
        I beyond = x * 2.0f >= F(book[next - 1] + book[next]);
        code = select(beyond, F((float)next), code), *value = select(beyond, F(book[next]), *value);
    }
    return code;
}

// Rows first..last of weight [out, n]: codes [out, n], and errors (w − q)/U_ii [out, n], as gptq_block says. scale and zero [out].
// With a book of values the code is a place in it, and zero is not asked for.
extern "C" void hubquant_gptq_block(
    const float *weight, const float *factor, const float *scale, const float *zero, const float *book, int64_t size,
    int64_t first, int64_t last, int64_t n, uint8_t *codes, float *errors) {
    std::vector<F> w(n);
    for (int64_t start = first; start < last; start += LANES) {
        int wanted = (int)std::min<int64_t>(LANES, last - start);
        load(weight, start, last, n, n, w.data());
        F step, origin;
        load(scale, start, last, 1, 1, &step);
        if (zero) load(zero, start, last, 1, 1, &origin);
        for (int64_t i = 0; i < n; i++) {
            const float *u = factor + i * n;
            F code, value;
            if (book) {
                code = nearest(w[i] / step, book, (int)size, &value);
                value = value * step;
            } else {
                code = clamp(rounded(w[i] / step) + origin, 0.0f, (float)(size - 1));
                value = (code - origin) * step;
            }
            F error = (w[i] - value) / u[i];
            const float *found = (const float *)&code, *left = (const float *)&error;
            for (int j = 0; j < wanted; j++) {
                codes[(start + j) * n + i] = (uint8_t)found[j];
                errors[(start + j) * n + i] = left[j];
            }
            follow(w.data(), u, error, i + 1, n);
        }
    }
}

constexpr int64_t BLOCK = 128;   // columns of which codes are chosen before the gradient of all others follows
constexpr int64_t STRIP = 1024;  // of those at a time, so that the block's part of the hessian stays near
constexpr int TOGETHER = 4;      // moves that are taken off a number between reading and writing it

// The moves of rows of weights in n columns, row by row, each row's with moves by nothing up to a whole number of TOGETHER.
struct Moves {
    std::vector<int64_t> column, ends;
    std::vector<float> by;
};

// Codes of columns start..start + n of the rows first..last, one column after the other, in place; H [n, n] with its damping.
static void choose(
    float *codes, const float *gradient, const float *H, const float *step, float top, int64_t first, int64_t last, int64_t width,
    int64_t groups, int64_t start, int64_t n, Moves *moves) {
    std::vector<F> code(n), g(n);
    std::vector<float> moved(LANES * n);
    moves->column.clear(), moves->by.clear(), moves->ends.clear();
    int64_t group_size = width / groups;
    for (int64_t row = first; row < last; row += LANES) {
        int wanted = (int)std::min<int64_t>(LANES, last - row);
        load(codes + start, row, last, n, width, code.data());
        load(gradient + start, row, last, n, width, g.data());
        F s = 1.0f;
        for (int64_t i = 0; i < n; i++) {
            const float *h = H + i * n;
            if (i == 0 || (start + i) % group_size == 0) load(step + (start + i) / group_size, row, last, 1, groups, &s);
            float gain = h[i] > 0 ? 1 / h[i] : 0;
            F found = clamp(rounded(code[i] + g[i] * gain / s), 0.0f, top), by = (found - code[i]) * s;
            memcpy(moved.data() + i * LANES, &by, sizeof by);
            if (!any(found != code[i])) continue;  // few codes move, after the first sweep hardly one
            follow(g.data(), h, by, i + 1, n);
            const float *chosen = (const float *)&found;
            for (int j = 0; j < wanted; j++) codes[(row + j) * width + start + i] = chosen[j];
        }
        for (int j = 0; j < wanted; j++) {
            for (int64_t i = 0; i < n; i++)
                if (float by = moved[i * LANES + j]) moves->column.push_back(i), moves->by.push_back(by);
            while (moves->column.size() % TOGETHER) moves->column.push_back(0), moves->by.push_back(0);
            moves->ends.push_back((int64_t)moves->column.size());
        }
    }
}

// Rows of gradient [rows, width] less the moves times hessian [n, width], in place.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
__attribute__((optimize("fp-contract=fast")))
#endif
static void follow_moves(float *gradient, const float *hessian, int64_t width, const Moves &moves) {
    for (int64_t start = 0; start < width; start += STRIP) {
        int64_t size = std::min(STRIP, width - start), at = 0;
        for (size_t row = 0; row < moves.ends.size(); row++) {
            float *g = gradient + (int64_t)row * width + start;
            for (; at < moves.ends[row]; at += TOGETHER) {
                const float *h[TOGETHER], *by = moves.by.data() + at;
                for (int m = 0; m < TOGETHER; m++) h[m] = hessian + moves.column[at + m] * width + start;
                for (int64_t k = 0; k < size; k++) g[k] -= by[0] * h[0][k] + by[1] * h[1][k] + (by[2] * h[2][k] + by[3] * h[3][k]);
            }
        }
    }
}

// Rows first..last of codes and gradient [out, width], in place, as descend says. hessian is [width, width], damp [width], step
// [out, groups].
extern "C" void hubquant_descend(
    float *codes, float *gradient, const float *hessian, const float *damp, const float *step, float top, int64_t sweeps,
    int64_t first, int64_t last, int64_t width, int64_t groups) {
    std::vector<float> H(BLOCK * BLOCK);
    Moves moves;
    for (int64_t sweep = 0; sweep < sweeps; sweep++)
        for (int64_t start = 0; start < width; start += BLOCK) {
            int64_t n = std::min(BLOCK, width - start);
            for (int64_t i = 0; i < n; i++) {
                memcpy(H.data() + i * n, hessian + (start + i) * width + start, sizeof(float) * n);
                H[i * n + i] += damp[start + i];
            }
            choose(codes, gradient, H.data(), step, top, first, last, width, groups, start, n, &moves);
            follow_moves(gradient + first * width, hessian + start * width, width, moves);
            for (int64_t row = first, at = 0; row < last; row++)
                for (; at < moves.ends[row - first]; at++)
                    gradient[row * width + start + moves.column[at]] -= moves.by[at] * damp[start + moves.column[at]];
        }
}

// Of each of k grids the loss Σ ((Q(w) − w)·metric)² of rows first..last of weight [out, n], as fit_group says. scale, zero and losses
// are [k, out], metric is [n].
extern "C" void hubquant_grid_losses(
    const float *weight, const float *metric, const float *scale, const float *zero, float top, int64_t k, int64_t out,
    int64_t first, int64_t last, int64_t n, float *losses) {
    std::vector<F> w(n);
    for (int64_t start = first; start < last; start += LANES) {
        load(weight, start, last, n, n, w.data());
        for (int64_t c = 0; c < k; c++) {
            F step, origin, loss = 0.0f;
            load(scale + c * out, start, last, 1, 1, &step);
            load(zero + c * out, start, last, 1, 1, &origin);
            for (int64_t i = 0; i < n; i++) {
                F error = ((clamp(rounded(w[i] / step) + origin, 0.0f, top) - origin) * step - w[i]) * metric[i];
                loss = loss + error * error;
            }
            memcpy(losses + c * out + start, &loss, sizeof(float) * (size_t)std::min<int64_t>(LANES, last - start));
        }
    }
}
