// GPTQ's columns and coordinate descent, some rows of the matrix side by side: rows do not know of each other.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

constexpr int ROWS = 16;
using Strip = float[ROWS];

// A strip of rows [ROWS, n] turned to columns [n, ROWS]; rows beyond the last one repeat it.
static void load(const float *matrix, int64_t first, int64_t last, int64_t n, Strip *strip) {
    for (int j = 0; j < ROWS; j++) {
        const float *row = matrix + std::min(first + j, last - 1) * n;
        for (int64_t i = 0; i < n; i++) strip[i][j] = row[i];
    }
}

// The code of the codebook's value nearest to x, the upper one of two as near.
static float nearest(float x, const float *book, int size) {
    int code = 0;
    while (code + 1 < size && 2 * x >= book[code] + book[code + 1]) code++;
    return (float)code;
}

// Rows first..last of weight [out, n]: codes [out, n], and errors (w − q)/U_ii [out, n], as gptq_block says. scale and zero [out].
// With a book of values the code is a place in it, and zero is not asked for.
extern "C" void hubquant_gptq_block(
    const float *weight, const float *factor, const float *scale, const float *zero, const float *book, int64_t size,
    int64_t first, int64_t last, int64_t n, uint8_t *codes, float *errors) {
    std::vector<float> room(n * ROWS);
    Strip *w = (Strip *)room.data();
    float top = (float)(size - 1);
    for (int64_t start = first; start < last; start += ROWS) {
        int wanted = (int)std::min<int64_t>(ROWS, last - start);
        load(weight, start, last, n, w);
        Strip step, origin;
        for (int j = 0; j < ROWS; j++) {
            int64_t row = std::min(start + j, last - 1);
            step[j] = scale[row], origin[j] = zero ? zero[row] : 0.0f;
        }
        for (int64_t i = 0; i < n; i++) {
            const float *u = factor + i * n;
            Strip code, error;
            if (book) {
                for (int j = 0; j < ROWS; j++) {
                    code[j] = nearest(w[i][j] / step[j], book, (int)size);
                    error[j] = (w[i][j] - book[(int)code[j]] * step[j]) / u[i];
                }
            } else {
                for (int j = 0; j < ROWS; j++) {
                    float found = std::nearbyintf(w[i][j] / step[j]) + origin[j];
                    code[j] = std::min(std::max(found, 0.0f), top);
                    error[j] = (w[i][j] - (code[j] - origin[j]) * step[j]) / u[i];
                }
            }
            for (int j = 0; j < wanted; j++) {
                codes[(start + j) * n + i] = (uint8_t)code[j];
                errors[(start + j) * n + i] = error[j];
            }
            for (int64_t k = i + 1; k < n; k++)
                for (int j = 0; j < ROWS; j++) w[k][j] -= u[k] * error[j];
        }
    }
}

// Rows first..last of codes [out, n], in place, as descend_block says. gradient and step are [out, n], hessian is [n, n].
extern "C" void hubquant_descend_block(
    float *codes, const float *gradient, const float *hessian, const float *step, float top, int64_t first, int64_t last,
    int64_t n) {
    std::vector<float> room(3 * n * ROWS);
    Strip *code = (Strip *)room.data(), *g = code + n, *s = g + n;
    for (int64_t start = first; start < last; start += ROWS) {
        int wanted = (int)std::min<int64_t>(ROWS, last - start);
        load(codes, start, last, n, code), load(gradient, start, last, n, g), load(step, start, last, n, s);
        for (int64_t i = 0; i < n; i++) {
            const float *h = hessian + i * n;
            float gain = h[i] > 0 ? 1 / h[i] : 0;
            Strip moved;
            for (int j = 0; j < ROWS; j++) {
                float found = std::nearbyintf(code[i][j] + g[i][j] * gain / s[i][j]);
                found = std::min(std::max(found, 0.0f), top);
                moved[j] = (found - code[i][j]) * s[i][j];
                code[i][j] = found;
            }
            for (int64_t k = 0; k < n; k++)
                for (int j = 0; j < ROWS; j++) g[k][j] -= h[k] * moved[j];
        }
        for (int j = 0; j < wanted; j++)
            for (int64_t i = 0; i < n; i++) codes[(start + j) * n + i] = code[i][j];
    }
}
