// GPTQ's columns, the losses of its grids, and coordinate descent, LANES rows of the matrix side by side: rows do not know of each other.
#include "lanes.h"
#include <algorithm>
#include <vector>

// A strip of rows [LANES, n] turned to columns [n, LANES]; rows beyond the last one repeat it.
static void load(const float *matrix, int64_t first, int64_t last, int64_t n, F *strip) {
    float *numbers = (float *)strip;
    for (int j = 0; j < LANES; j++) {
        const float *row = matrix + std::min(first + j, last - 1) * n;
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
        load(weight, start, last, n, w.data());
        F step, origin;
        load(scale, start, last, 1, &step);
        if (zero) load(zero, start, last, 1, &origin);
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

// Rows first..last of codes [out, n], in place, as descend_block says. gradient and step are [out, n], hessian is [n, n].
extern "C" void hubquant_descend_block(
    float *codes, const float *gradient, const float *hessian, const float *step, float top, int64_t first, int64_t last,
    int64_t n) {
    std::vector<F> code(n), g(n), s(n);
    for (int64_t start = first; start < last; start += LANES) {
        int wanted = (int)std::min<int64_t>(LANES, last - start);
        load(codes, start, last, n, code.data());
        load(gradient, start, last, n, g.data());
        load(step, start, last, n, s.data());
        for (int64_t i = 0; i < n; i++) {
            const float *h = hessian + i * n;
            float gain = h[i] > 0 ? 1 / h[i] : 0;
            F found = clamp(rounded(code[i] + g[i] * gain / s[i]), 0.0f, top), moved = (found - code[i]) * s[i];
            code[i] = found;
            follow(g.data(), h, moved, i + 1, n);
        }
        const float *found = (const float *)code.data();
        for (int j = 0; j < wanted; j++)
            for (int64_t i = 0; i < n; i++) codes[(start + j) * n + i] = found[i * LANES + j];
    }
}

constexpr int COLUMNS = 6;  // of the metric, side by side: enough sums to hide the time that one takes

// ‖e M‖² over COLUMNS columns of a metric, of which rows from..to are not zero. Nobody compares bits here: fused where it can be.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
__attribute__((optimize("fp-contract=fast")))
#endif
static void add_squares(const F *e, const float *columns, int64_t n, int64_t from, int64_t to, F *loss) {
    Floats a[COLUMNS] = {}, b[COLUMNS] = {};
    for (int64_t i = from; i < to; i++) {
        Floats x = e[i].a, y = e[i].b;
        for (int c = 0; c < COLUMNS; c++) {
            Floats m = columns[c * n + i] - Floats{};
            a[c] += x * m, b[c] += y * m;
        }
    }
    for (int c = 0; c < COLUMNS; c++) loss->a += a[c] * a[c], loss->b += b[c] * b[c];
}

// Of each of k grids the loss ‖(Q(w) − w) M‖² of rows first..last of weight [out, n], as fit_group says. scale, zero and losses are
// [k, out], metric is M [n, n].
extern "C" void hubquant_grid_losses(
    const float *weight, const float *metric, const float *scale, const float *zero, float top, int64_t k, int64_t out,
    int64_t first, int64_t last, int64_t n, float *losses) {
    std::vector<F> w(n), e(n);
    int64_t groups = (n + COLUMNS - 1) / COLUMNS;
    std::vector<float> columns(groups * COLUMNS * n);  // M's, with columns of zeros after the last
    std::vector<int64_t> from(groups, n), to(groups, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            if (metric[i * n + j] != 0) {
                int64_t g = j / COLUMNS;
                columns[j * n + i] = metric[i * n + j];
                from[g] = std::min(from[g], i), to[g] = i + 1;
            }
    for (int64_t start = first; start < last; start += LANES) {
        load(weight, start, last, n, w.data());
        for (int64_t c = 0; c < k; c++) {
            F step, origin, loss = 0.0f;
            load(scale + c * out, start, last, 1, &step);
            load(zero + c * out, start, last, 1, &origin);
            for (int64_t i = 0; i < n; i++) e[i] = (clamp(rounded(w[i] / step) + origin, 0.0f, top) - origin) * step - w[i];
            for (int64_t g = 0; g < groups; g++) add_squares(e.data(), columns.data() + g * COLUMNS * n, n, from[g], to[g], &loss);
            memcpy(losses + c * out + start, &loss, sizeof(float) * (size_t)std::min<int64_t>(LANES, last - start));
        }
    }
}
