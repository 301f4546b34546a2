// A linear layer under a cross-entropy, with the gradients of both, a block of rows at a time.
//
// The logits of a block stay in a near cache from the product that makes them to the two that use their gradient; those
// of all rows never exist. A softmax is over all outputs (a target is one of them), or over a target of its own and the
// outputs as its negatives, of which one that is the target itself is left out.
#include <cmath>
#include <cstdint>

#include "softmax.h"
#include "vectors.h"

namespace {

using namespace segue;

constexpr int64_t ROWS = 8 * TILE_ROWS;  // of a block
constexpr int64_t DEPTH = 96;            // outputs that are summed over at once: their weights fit the nearest cache

}  // namespace

extern "C" {

// Arrays side by side; null where there is none. `width` is a multiple of a tile's columns.
struct SegueLinearLoss {
    int64_t rows, width, outputs, parts;
    const float *x, *weight;  // [rows, width], [outputs, width]
    float* panels;            // [outputs rounded up, width], memory: the weights turned
    float* slices;            // [outputs, width], memory: the weights, a tile's columns of all outputs after another's
    float* x_slices;          // [parts, a block's rows, width], memory: the same of a block's rows
    float* logits;            // [parts, a block's rows, outputs rounded up], memory
    float scale;              // of x times weight
    const float* bias;        // [outputs], added
    const int64_t* targets;   // [rows], outputs; or, where targets are no outputs:
    const int32_t *ids, *target_ids;  // [outputs], [rows]
    float* positive;          // [rows]: scores of the targets, become the loss's gradient of them
    float* loss;              // [rows]
    uint8_t* hit;             // [rows]
    float* grad_x;            // [rows, width]; null where no gradient is asked for
    float* grad_weight;       // [parts, outputs, width]
    float* grad_bias;         // [parts, outputs]
};

}  // extern "C"

namespace {

int64_t columns_of(const SegueLinearLoss& call) { return round_up(call.outputs, TILE_COLUMNS); }

// Rows [rows, width] as [width / tile, rows, tile]: a product reads a slice from one end to the other, where rows a power
// of two apart would drive one another out of the nearest cache.
void slice(const float* rows, int64_t count, int64_t width, float* slices) {
    for (int64_t e = 0; e < width; e += TILE_COLUMNS)
        for (int64_t r = 0; r < count; r++) {
            float* to = slices + e * count + r * TILE_COLUMNS;
            store(to, load(rows + r * width + e));
            store(to + LANES, load(rows + r * width + e + LANES));
        }
}

// Panel p: the weights of one tile of outputs, [width, tile], for the same reason.
void turn_weights(const SegueLinearLoss& call) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < columns_of(call); o += LANES) {
        float* panel = call.panels + o / TILE_COLUMNS * TILE_COLUMNS * call.width + o % TILE_COLUMNS;
        for (int64_t e = 0; e < call.width; e += LANES) {
            Floats square[LANES];
            for (int64_t r = 0; r < LANES; r++)
                square[r] = o + r < call.outputs ? load(call.weight + (o + r) * call.width + e) : Floats{};
            turn(square);
            for (int64_t c = 0; c < LANES; c++) store(panel + (e + c) * TILE_COLUMNS, square[c]);
        }
    }
}

int64_t tile(int64_t rows, int64_t r) { return rows - r < TILE_ROWS ? rows - r : TILE_ROWS; }

void make_logits(const SegueLinearLoss& call, int64_t first, int64_t rows, float* logits) {
    const int64_t columns = columns_of(call);
    for (int64_t o = 0; o < columns; o += TILE_COLUMNS)
        for (int64_t r = 0; r < rows; r += TILE_ROWS)
            product_of_rows<false>(tile(rows, r), call.x + (first + r) * call.width, call.width, 1,
                                   call.panels + o * call.width, TILE_COLUMNS, logits + r * columns + o, columns,
                                   call.width);
}

// The loss of each row; logits become what the loss's gradient of the products is.
void lose(const SegueLinearLoss& call, int64_t first, int64_t rows, float* logits) {
    for (int64_t r = 0; r < rows; r++) {
        float* row = logits + r * columns_of(call);
        const int64_t at = first + r;
        if (call.targets) {
            affine(row, call.outputs, call.scale, call.bias);
            call.loss[at] = cross_entropy(row, call.outputs, call.targets[at], 1.0f, call.hit + at);
        } else {
            const Negatives negatives = {row, call.ids, call.bias, call.outputs};
            call.loss[at] = sampled_cross_entropy(negatives, call.target_ids[at], call.scale, call.positive + at,
                                                  call.hit + at);
        }
    }
}

void add_gradients(const SegueLinearLoss& call, int64_t first, int64_t rows, const float* grads, float* x_slices,
                   float* grad_weight) {
    const int64_t columns = columns_of(call), width = call.width;
    slice(call.x + first * width, rows, width, x_slices);
    for (int64_t o = 0; o < call.outputs; o += DEPTH) {
        const int64_t depth = call.outputs - o < DEPTH ? call.outputs - o : DEPTH;
        for (int64_t r = 0; r < rows; r += TILE_ROWS)
            for (int64_t e = 0; e < width; e += TILE_COLUMNS)
                product_of_rows<true>(tile(rows, r), grads + r * columns + o, columns, 1,
                                      call.slices + e * call.outputs + o * TILE_COLUMNS, TILE_COLUMNS,
                                      call.grad_x + (first + r) * width + e, width, depth);
    }
    for (int64_t o = 0; o < call.outputs; o += TILE_ROWS)
        for (int64_t e = 0; e < width; e += TILE_COLUMNS)
            product_of_rows<true>(tile(call.outputs, o), grads + o, 1, columns, x_slices + e * rows, TILE_COLUMNS,
                                  grad_weight + o * width + e, width, rows);
}

void add_bias_gradient(const SegueLinearLoss& call, int64_t rows, const float* grads, float* grad_bias) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < call.outputs; o++) grad_bias[o] += grads[r * columns_of(call) + o];
}

void do_part(const SegueLinearLoss& call, int64_t part) {
    const int64_t begin = call.rows * part / call.parts, end = call.rows * (part + 1) / call.parts;
    float* logits = call.logits + part * ROWS * columns_of(call);
    for (int64_t first = begin; first < end; first += ROWS) {
        const int64_t rows = end - first < ROWS ? end - first : ROWS;
        make_logits(call, first, rows, logits);
        lose(call, first, rows, logits);
        if (call.grad_x == nullptr) continue;
        add_gradients(call, first, rows, logits, call.x_slices + part * ROWS * call.width,
                      call.grad_weight + part * call.outputs * call.width);
        if (call.grad_bias) add_bias_gradient(call, rows, logits, call.grad_bias + part * call.outputs);
    }
}

}  // namespace

extern "C" {

// Rows of a block, by which a caller makes room for its logits.
int64_t segue_linear_loss_rows() { return ROWS; }

// Columns of a tile, of which the width must be a multiple.
int64_t segue_tile_columns() { return TILE_COLUMNS; }

// Gradients of the weights and of the bias are left to be summed over the parts, and all but the bias's to be multiplied
// by `scale` where targets are outputs.
void segue_linear_loss(const SegueLinearLoss* call) {
    turn_weights(*call);
    if (call->grad_x) slice(call->weight, call->outputs, call->width, call->slices);
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < call->parts; part++) do_part(*call, part);
}

}  // extern "C"
