// GPTQ's columns, the losses of its grids, and coordinate descent, LANES rows of the matrix side by side: rows do not know of each other.
#include "lanes.h"
#include <algorithm>
#include <cfloat>
#include <vector>

// n numbers of LANES rows that lie `stride` apart, turned to columns [n, LANES]; rows beyond the last one repeat it.
static void load(const float *matrix, int64_t first, int64_t last, int64_t n, int64_t stride, F *strip) {
    float *numbers = (float *)strip;
    for (int j = 0; j < LANES; j++) {
        const float *row = matrix + std::min(first + j, last - 1) * stride;
        for (int64_t i = 0; i < n; i++) numbers[i * LANES + j] = row[i];
    }
}

// products and sums may be fused here, where no bytes of ggml's are at stake
#ifdef __clang__
#pragma clang fp contract(fast)
#define CONTRACTED
#else
#define CONTRACTED __attribute__((optimize("fp-contract=fast")))
#endif

constexpr int ABREAST = 4;  // columns that are summed together, so that sums do not wait for each other

// left[k] −= Σ errors[j]·matrix[j, column + k] over the first `rows` rows of matrix [.., n], for K columns
template <int K>
CONTRACTED static void take_off(const F *errors, const float *matrix, int64_t n, int64_t rows, int64_t column, F *left) {
    Floats a[K], b[K];
    for (int k = 0; k < K; k++) a[k] = left[k].a, b[k] = left[k].b;
    const float *m = matrix + column;
    for (int64_t j = 0; j < rows; j++, m += n) {
        Floats ea = errors[j].a, eb = errors[j].b;
        for (int k = 0; k < K; k++) a[k] -= ea * m[k], b[k] -= eb * m[k];
    }
    for (int k = 0; k < K; k++) left[k] = {a[k], b[k]};
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

// One grid, or codebook, of LANES rows.
struct Grid {
    F step, origin;
    float top;
    const float *book;  // of top + 1 values, or null: then the code is a whole number, and origin its zero
    F nearest_code(F x, F *value) const {
        if (book) {
            F code = nearest(x / step, book, (int)top + 1, value);
            *value = *value * step;
            return code;
        }
        F code = clamp(rounded(x / step) + origin, 0.0f, top);
        *value = (code - origin) * step;
        return code;
    }
};

// Codes and errors (w − q)/U_ii of the columns w [n], each of which makes up for the errors of those before it.
template <int K>
static void round_columns(const F *w, const float *factor, int64_t n, const Grid &grid, int64_t i, F *codes, F *errors) {
    F left[K];
    for (int k = 0; k < K; k++) left[k] = w[i + k];
    take_off<K>(errors, factor, n, i, i, left);
    for (int k = 0; k < K; k++) {
        const float *u = factor + (i + k) * n + i;
        F value;
        codes[i + k] = grid.nearest_code(left[k], &value);
        F error = errors[i + k] = (left[k] - value) / u[k];
        for (int m = k + 1; m < K; m++) left[m] = left[m] - error * u[m];
    }
}

static void round_block(const F *w, const float *factor, int64_t n, const Grid &grid, F *codes, F *errors) {
    int64_t i = 0;
    for (; i + ABREAST <= n; i += ABREAST) round_columns<ABREAST>(w, factor, n, grid, i, codes, errors);
    for (; i < n; i++) round_columns<1>(w, factor, n, grid, i, codes, errors);
}

// Columns [n, LANES] to rows first.. of a matrix [.., n], those before `last`.
template <class T>
static void store(const F *strip, int64_t first, int64_t last, int64_t n, T *matrix) {
    const float *numbers = (const float *)strip;
    for (int64_t j = 0; j < std::min<int64_t>(LANES, last - first); j++)
        for (int64_t i = 0; i < n; i++) matrix[(first + j) * n + i] = (T)numbers[i * LANES + j];
}

// Rows first..last of weight [out, n]: codes [out, n], and errors [out, n], as gptq_block says. scale and zero [out]. With a book of
// values the code is a place in it, and zero is not asked for.
extern "C" void hubquant_gptq_block(
    const float *weight, const float *factor, const float *scale, const float *zero, const float *book, int64_t size,
    int64_t first, int64_t last, int64_t n, uint8_t *codes, float *errors) {
    std::vector<F> w(n), code(n), error(n);
    Grid grid{0.0f, 0.0f, (float)(size - 1), book};
    for (int64_t start = first; start < last; start += LANES) {
        load(weight, start, last, n, n, w.data());
        load(scale, start, last, 1, 1, &grid.step);
        if (zero) load(zero, start, last, 1, 1, &grid.origin);
        round_block(w.data(), factor, n, grid, code.data(), error.data());
        store(code.data(), start, last, n, codes), store(error.data(), start, last, n, errors);
    }
}

// x [n] times an upper matrix [n, n].
static void times_upper(const F *x, const float *matrix, int64_t n, F *out) {
    int64_t i = 0;
    for (; i + ABREAST <= n; i += ABREAST) {
        for (int k = 0; k < ABREAST; k++) out[i + k] = 0.0f;
        take_off<ABREAST>(x, matrix, n, i + ABREAST, i, out + i);  // below its diagonal there is nothing
    }
    for (; i < n; i++) out[i] = 0.0f, take_off<1>(x, matrix, n, i + 1, i, out + i);
    for (i = 0; i < n; i++) out[i] = -out[i];
}

// The best of the roundings of LANES rows that were tried, row by row.
struct Rounded {
    const float *factor, *seen;
    int64_t n;
    Grid grid;
    std::vector<F> w, codes, errors, its_codes, its_errors;
    F loss, step;

    Rounded(const float *factor, const float *seen, int64_t n, float top)
        : factor(factor), seen(seen), n(n), grid{0.0f, 0.0f, top, nullptr}, w(n), codes(n), errors(n), its_codes(n), its_errors(n) {}
    void begin() {
        loss = INFINITY, step = 1.0f;
        std::fill(codes.begin(), codes.end(), F(0.0f)), std::fill(errors.begin(), errors.end(), F(0.0f));
    }
    void try_step(F tried) {
        grid.step = tried;
        round_block(w.data(), factor, n, grid, its_codes.data(), its_errors.data());
        F its_loss = 0.0f;
        for (int64_t i = 0; i < n; i++) its_loss = its_loss + its_errors[i] * its_errors[i] * seen[i];
        I better = its_loss < loss;
        if (!any(better)) return;
        loss = select(better, its_loss, loss), step = select(better, tried, step);
        for (int64_t i = 0; i < n; i++) {
            codes[i] = select(better, its_codes[i], codes[i]), errors[i] = select(better, its_errors[i], errors[i]);
        }
    }
};

// as grid.py's function of that name
static F storable(F scale) {
    F size = rounded16(clamp(magnitude(scale), 6.103515625e-5f, 65504.0f));
    return floats(bits(size) | (bits(scale) & INT32_MIN));
}

// Rows first..last of weight [out, n] as gptq_group says: codes [out, n], errors [out, n] and scale [out], which holds the first
// scale to try, times each of `times`; then those that least squares find. zero [out]; metric [n, n] upper; seen [n] 0 or 1.
extern "C" void hubquant_gptq_group(
    const float *weight, const float *factor, const float *metric, const float *seen, const float *zero, const float *times,
    int64_t n_times, int64_t refits, float top, int64_t first, int64_t last, int64_t n, float *scale, uint8_t *codes, float *errors) {
    Rounded found(factor, seen, n, top);
    std::vector<F> x(n), wanted(n), levels(n);
    for (int64_t start = first; start < last; start += LANES) {
        F given;
        load(weight, start, last, n, n, found.w.data());
        load(scale, start, last, 1, 1, &given);
        load(zero, start, last, 1, 1, &found.grid.origin);
        found.begin();
        for (int64_t t = 0; t < n_times; t++) found.try_step(storable(given * times[t]));
        for (int64_t i = 0; i < n; i++) x[i] = found.w[i] * seen[i];
        times_upper(x.data(), metric, n, wanted.data());
        for (int64_t t = 0; t < refits; t++) {
            for (int64_t i = 0; i < n; i++) x[i] = (found.codes[i] - found.grid.origin) * seen[i];
            times_upper(x.data(), metric, n, levels.data());
            F both = 0.0f, norm = 0.0f;
            for (int64_t i = 0; i < n; i++) both = both + wanted[i] * levels[i], norm = norm + levels[i] * levels[i];
            found.try_step(storable(both / greater(norm, 1.17549435e-38f)));
        }
        store(found.codes.data(), start, last, n, codes), store(found.errors.data(), start, last, n, errors);
        store(&found.step, start, last, 1, scale);
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
            float gain = h[i] >= FLT_MIN ? 1 / h[i] : 0;
            F found = clamp(rounded(code[i] + g[i] * gain / s), 0.0f, top), by = (found - code[i]) * s;
            memcpy(moved.data() + i * LANES, &by, sizeof by);
            if (!any(found != code[i])) continue;  // few codes move, after the first sweep hardly one
            for (int64_t k = i + 1; k < n; k++) g[k] = g[k] - by * h[k];
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
CONTRACTED static void follow_moves(float *gradient, const float *hessian, int64_t width, const Moves &moves) {
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
