// Causal attention within users, forward and backward, a user's head at a time: nothing quadratic is ever kept.
//
// A head's queries are walked over in blocks, and each block over the keys up to its own end in blocks; the scores of
// the two lie in the nearest cache while everything is done to them that is to be done: biases, mask, SiLU or softmax
// (with running sums, as in FlashAttention), and the products that follow. Queries, keys and values are first copied
// side by side, since in the model's own layout the rows of a head stand a power of two apart, which no cache likes.
//
// n tokens of the user, of whom none sees a later one; width E of queries and keys, F of values, both rounded up to a
// tile's columns.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "vectors.h"

namespace {

using namespace segue;

constexpr int64_t QUERIES = 48, KEYS = 96;  // of a block
constexpr int64_t COLUMNS = KEYS + TILE_COLUMNS;

}  // namespace

extern "C" {

// Rows of one kind of vector: that of token t and head h begins at `data + t * row + h * head`.
struct SegueRows {
    float* data;
    int64_t row, head, width;
};

// Everything that a call is told; null where there is none.
struct SegueAttention {
    int64_t users, heads;
    const int64_t* offsets;    // [users + 1]
    const int64_t* order;      // [users], those with the most work first
    int32_t softmax;           // else SiLU
    float scale;               // of query times key
    const float* divisors;     // [tokens], of SiLU's sums
    SegueRows q, k, v, out;
    float* log_sum;            // [tokens, heads], softmax: what the backward needs of the forward
    const float* key_bias;     // [tokens, heads]
    const float* by_distance;  // [heads, longest]
    int64_t longest;
    const float* by_time;      // [heads, buckets]
    int64_t buckets;
    const int64_t *query_times, *key_times;  // [tokens]
    // Of the backward. What is summed over users is summed by whoever asks, in the order of users: [users, heads, ...].
    SegueRows grad_out, grad_q, grad_k, grad_v;
    float *grad_key_bias, *grad_by_distance, *grad_by_time;
};

}  // extern "C"

namespace {

// Memory of a thread, which grows and is kept: fresh memory is slower than the arithmetic.
class Memory {
   public:
    ~Memory() { std::free(held_); }

    void begin(int64_t numbers) {
        used_ = 0;
        if (numbers <= size_) return;
        std::free(held_);
        size_ = round_up(numbers + numbers / 4, 1024);
        held_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
        if (held_ == nullptr) std::abort();
    }

    float* take(int64_t numbers) {
        float* taken = held_ + used_;
        used_ += round_up(numbers, 16);
        return taken;
    }

   private:
    float* held_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

thread_local Memory memory;

// One user's head, its vectors side by side. Rows of transposed ones are `columns` long, for whole tiles of keys.
struct Head {
    const SegueAttention& of;
    int64_t user, head, first, n, columns, E, F;
    float *q, *k, *k_turned, *v, *v_turned, *out;
    float *grad_out, *grad_q, *grad_k, *grad_v, *own;  // own: of each query, softmax: sum of grad_out times out
    float *key_bias, *by_distance, *grad_key_bias, *grad_by_distance, *grad_by_time;
    int32_t *query_times, *key_times;
    float *scores, *grads;

    Head(const SegueAttention& given, int64_t item, bool backward) : of(given) {
        user = given.order[item / given.heads];
        head = item % given.heads;
        first = given.offsets[user];
        n = given.offsets[user + 1] - first;
        columns = round_up(n, TILE_COLUMNS) + TILE_COLUMNS;
        if (columns % 64 == 0) columns += TILE_COLUMNS;  // rows a power of two apart drive one another out of the cache
        E = round_up(given.q.width, TILE_COLUMNS);
        F = round_up(given.v.width, TILE_COLUMNS);
        memory.begin(n * (3 * E + 3 * F) + columns * (E + F) + n * (E + F) + 8 * columns + 2 * QUERIES * COLUMNS +
                     (backward ? LANES * given.buckets : 0) + 512);
        q = memory.take(n * E);
        k_turned = memory.take(columns * E);
        if (backward) {
            k = memory.take(n * E);
            v_turned = memory.take(columns * F);
            grad_out = memory.take(n * F);
            grad_q = memory.take(n * E);
            grad_k = memory.take(n * E);
            grad_v = memory.take(n * F);
            grad_key_bias = memory.take(columns);
            grad_by_distance = memory.take(columns);
            grad_by_time = memory.take(LANES * given.buckets);
            own = memory.take(n);
        } else {
            v = memory.take(n * F);
            out = memory.take(n * F);
        }
        key_bias = memory.take(columns);
        by_distance = memory.take(columns);
        query_times = reinterpret_cast<int32_t*>(memory.take(columns));
        key_times = reinterpret_cast<int32_t*>(memory.take(columns));
        scores = memory.take(QUERIES * COLUMNS);
        grads = memory.take(QUERIES * COLUMNS);
        copy_biases();
    }

    const float* row(const SegueRows& rows, int64_t i) const {
        return rows.data + (first + i) * rows.row + head * rows.head;
    }

    // Rows side by side, zeros up to `width`.
    void copy(const SegueRows& rows, int64_t width, float factor, float* to) const {
        for (int64_t i = 0; i < n; i++) {
            const float* from = row(rows, i);
            for (int64_t e = 0; e < rows.width; e++) to[i * width + e] = from[e] * factor;
            for (int64_t e = rows.width; e < width; e++) to[i * width + e] = 0;
        }
    }

    // Columns side by side, of a key or value each, zeros beyond the last.
    void copy_turned(const SegueRows& rows, int64_t width, float* to) const {
        Floats square[LANES];
        for (int64_t i = 0; i < columns; i += LANES)
            for (int64_t e = 0; e < width; e += LANES) {
                for (int64_t r = 0; r < LANES; r++) square[r] = part(rows, i + r, e);
                turn(square);
                for (int64_t c = 0; c < LANES; c++) store(to + (e + c) * columns + i, square[c]);
            }
    }

    // Numbers e … e + LANES - 1 of a row, zeros where there are none.
    Floats part(const SegueRows& rows, int64_t i, int64_t e) const {
        Floats found = Floats{};
        if (i >= n) return found;
        if (e + LANES <= rows.width) return load(row(rows, i) + e);
        for (int64_t lane = 0; e + lane < rows.width; lane++) found[lane] = row(rows, i)[e + lane];
        return found;
    }

    void write(const float* from, int64_t width, const SegueRows& rows, float factor) const {
        for (int64_t i = 0; i < n; i++) {
            float* to = const_cast<float*>(row(rows, i));
            for (int64_t e = 0; e < rows.width; e++) to[e] = from[i * width + e] * factor;
        }
    }

    // by_distance[n - 1 - d] is that of distance d, so that a row of scores reads it forwards; the future, which is
    // masked, reads the zeros behind.
    void copy_biases() {
        if (of.key_bias)
            for (int64_t j = 0; j < columns; j++)
                key_bias[j] = j < n ? of.key_bias[(first + j) * of.heads + head] : 0;
        if (of.by_distance) {
            const float* from = of.by_distance + head * of.longest;
            std::memset(by_distance, 0, columns * sizeof(float));
            for (int64_t d = 0; d < n; d++) by_distance[n - 1 - d] = from[d];
        }
        if (of.by_time == nullptr) return;
        int64_t start = n ? of.key_times[first] : 0;
        for (int64_t j = 1; j < n; j++)
            start = of.key_times[first + j] < start ? of.key_times[first + j] : start;
        for (int64_t j = 0; j < columns; j++) {
            query_times[j] = j < n ? seconds(of.query_times[first + j] - start) : 0;
            key_times[j] = j < n ? seconds(of.key_times[first + j] - start) : 0;
        }
    }

    static int32_t seconds(int64_t elapsed) {
        return elapsed < -1 ? -1 : elapsed > 2147483647 ? 2147483647 : static_cast<int32_t>(elapsed);
    }
};

// Of what biases a call has. A flag each, known when it is compiled, since the loops over scores are short.
template <bool TIME, bool DISTANCE, bool KEY>
struct Biases {
    // As one query sees them; places are those of keys in the user's history.
    const float *table, *by_distance, *key_bias;
    const int32_t* key_times;
    int32_t query_time, last_bucket;

    Biases(const Head& of, int64_t i)
        : table(TIME ? of.of.by_time + of.head * of.of.buckets : nullptr),
          by_distance(of.by_distance + of.n - 1 - i),
          key_bias(of.key_bias),
          key_times(of.key_times),
          query_time(TIME ? of.query_times[i] : 0),
          last_bucket(static_cast<int32_t>(of.of.buckets - 1)) {}

    // Of the keys j … j + LANES - 1: as `model.biases.log_buckets`.
    Ints buckets(int64_t j) const {
        const Ints elapsed = greater(splat(query_time) - load(key_times + j), splat(1));
        const Ints bits = (Ints)__builtin_convertvector(elapsed, Floats);
        return lesser((bits >> 22) - 2 * 127, splat(last_bucket));
    }

    Floats operator()(int64_t j) const {
        Floats found = Floats{};
        if (TIME) found += look_up(table, buckets(j));
        if (DISTANCE) found += load(by_distance + j);
        if (KEY) found += load(key_bias + j);
        return found;
    }
};

// A block of queries and the keys that it looks at now.
struct Block {
    int64_t query, queries, key, keys;

    // One past the last column that the tile of queries from r on sees, and that in whole tiles of columns.
    int64_t seen(int64_t r) const {
        const int64_t last = query + (r + TILE_ROWS < queries ? r + TILE_ROWS : queries);
        return last <= key ? 0 : last - key < keys ? last - key : keys;
    }
    int64_t rows(int64_t r) const { return queries - r < TILE_ROWS ? queries - r : TILE_ROWS; }
};

// The scores of a block, biases apart: a b, with a's rows of `width` numbers, b turned.
void score(const Block& block, const float* a, const float* b_turned, int64_t width, int64_t columns, float* into) {
    for (int64_t c = 0; c < block.keys; c += TILE_COLUMNS)
        for (int64_t r = 0; r < block.queries; r += TILE_ROWS)
            if (c < block.seen(r))
                product_of_rows<false>(block.rows(r), a + (block.query + r) * width, width, 1,
                                       b_turned + block.key + c, columns, into + r * COLUMNS + c, COLUMNS, width);
}

// to[query, :] += sum over keys of weights times the keys' rows.
void gather(const Block& block, const float* weights, const float* rows, int64_t width, float* to) {
    for (int64_t r = 0; r < block.queries; r += TILE_ROWS)
        for (int64_t c = 0; c < width; c += TILE_COLUMNS)
            product_of_rows<true>(block.rows(r), weights + r * COLUMNS, COLUMNS, 1, rows + block.key * width + c, width,
                                  to + (block.query + r) * width + c, width, block.seen(r));
}

// to[key, :] += sum over the queries that see it of weights times the queries' rows.
void scatter(const Block& block, const float* weights, const float* rows, int64_t width, float* to) {
    for (int64_t j = 0; j < block.keys; j += TILE_ROWS) {
        const int64_t count = block.keys - j < TILE_ROWS ? block.keys - j : TILE_ROWS;
        const int64_t skipped = block.key + j > block.query ? block.key + j - block.query : 0;
        if (skipped >= block.queries) break;
        for (int64_t c = 0; c < width; c += TILE_COLUMNS)
            product_of_rows<true>(count, weights + skipped * COLUMNS + j, 1, COLUMNS,
                                  rows + (block.query + skipped) * width + c, width, to + (block.key + j) * width + c,
                                  width, block.queries - skipped);
    }
}

template <class Do>
void for_blocks(int64_t n, Do&& work) {
    for (int64_t i = 0; i < n; i += QUERIES) {
        const int64_t queries = n - i < QUERIES ? n - i : QUERIES;
        for (int64_t j = 0; j < i + queries; j += KEYS) {
            const int64_t keys = i + queries - j < KEYS ? i + queries - j : KEYS;
            work(Block{i, queries, j, keys});
        }
    }
}

// Nothing from a row's column `from` on, as far as any product reads.
void clear_rest(float* row, int64_t from) {
    for (int64_t j = from; j < COLUMNS; j++) row[j] = 0;
}

// How many of a block's columns query r sees.
int64_t visible(const Block& block, int64_t r) {
    const int64_t seen = block.query + r + 1 - block.key;
    return seen < 0 ? 0 : seen < block.keys ? seen : block.keys;
}

// ── forward ──────────────────────────────────────────────────────────────────────────────────────────────

template <class Added>
void silu_weights(const Head& of, const Block& block) {
    for (int64_t r = 0; r < block.queries; r++) {
        float* row = of.scores + r * COLUMNS;
        const Added biases(of, block.query + r);
        const int64_t seen = visible(block, r);
        for (int64_t j = 0; j < seen; j += LANES) {
            const Floats s = load(row + j) + biases(block.key + j);
            store(row + j, s * sigmoid(s));
        }
        clear_rest(row, seen);
    }
}

// Weights against the largest score so far; what was gathered before shrinks accordingly.
template <class Added>
void softmax_weights(const Head& of, const Block& block, float* most, float* total) {
    for (int64_t r = 0; r < block.queries; r++) {
        float* row = of.scores + r * COLUMNS;
        const int64_t seen = visible(block, r), i = block.query + r;
        const Added biases(of, i);
        Floats found = splat(-INFINITY);
        for (int64_t j = 0; j < seen; j += LANES) {
            const Floats s = load(row + j) + biases(block.key + j);
            store(row + j, s);
            if (j + LANES <= seen) found = greater(s, found);
        }
        float largest_now = largest(found);
        for (int64_t j = seen / LANES * LANES; j < seen; j++) largest_now = row[j] > largest_now ? row[j] : largest_now;
        largest_now = largest_now > most[r] ? largest_now : most[r];
        const float shrink = std::exp(most[r] - largest_now);
        if (shrink != 1.0f)
            for (int64_t f = 0; f < of.F; f++) of.out[i * of.F + f] *= shrink;
        for (int64_t j = 0; j < seen; j += LANES) store(row + j, exponential(load(row + j) - largest_now));
        clear_rest(row, seen);
        Floats sums = Floats{};
        for (int64_t j = 0; j < seen; j += LANES) sums += load(row + j);
        total[r] = total[r] * shrink + sum(sums);
        most[r] = largest_now;
    }
}

template <class Added>
void forward(const Head& of) {
    const SegueAttention& call = of.of;
    of.copy(call.q, of.E, call.scale, of.q);
    of.copy_turned(call.k, of.E, of.k_turned);
    of.copy(call.v, of.F, 1.0f, of.v);
    std::memset(of.out, 0, of.n * of.F * sizeof(float));
    float most[QUERIES], total[QUERIES];
    for_blocks(of.n, [&](const Block& block) {
        if (block.key == 0)
            for (int64_t r = 0; r < QUERIES; r++) most[r] = -INFINITY, total[r] = 0;
        score(block, of.q, of.k_turned, of.E, of.columns, of.scores);
        if (call.softmax)
            softmax_weights<Added>(of, block, most, total);
        else
            silu_weights<Added>(of, block);
        gather(block, of.scores, of.v, of.F, of.out);
        if (call.softmax && block.key + block.keys == block.query + block.queries)
            for (int64_t r = 0; r < block.queries; r++) {
                const int64_t i = block.query + r;
                for (int64_t f = 0; f < of.F; f++) of.out[i * of.F + f] /= total[r];
                call.log_sum[(of.first + i) * call.heads + of.head] = most[r] + std::log(total[r]);
            }
    });
    if (!call.softmax)
        for (int64_t i = 0; i < of.n; i++)
            for (int64_t f = 0; f < of.F; f++) of.out[i * of.F + f] /= call.divisors[of.first + i];
    of.write(of.out, of.F, call.out, 1.0f);
}

// ── backward ─────────────────────────────────────────────────────────────────────────────────────────────

// Scores and gradients of weights become weights and gradients of scores.
template <bool SOFTMAX, class Added>
void weights_and_gradients(const Head& of, const Block& block) {
    for (int64_t r = 0; r < block.queries; r++) {
        float *row = of.scores + r * COLUMNS, *grad = of.grads + r * COLUMNS;
        const int64_t seen = visible(block, r), i = block.query + r;
        const Added biases(of, i);
        const float log_sum = SOFTMAX ? of.of.log_sum[(of.first + i) * of.of.heads + of.head] : 0.0f;
        const float own = SOFTMAX ? of.own[i] : 0.0f;
        for (int64_t j = 0; j < seen; j += LANES) {
            const Floats s = load(row + j) + biases(block.key + j), g = load(grad + j);
            if (SOFTMAX) {
                const Floats weight = exponential(s - log_sum);
                store(row + j, weight);
                store(grad + j, weight * (g - own));
            } else {
                const Floats open = sigmoid(s), weight = s * open;
                store(row + j, weight);
                store(grad + j, g * (open + weight * (1.0f - open)));
            }
        }
        clear_rest(row, seen);
        clear_rest(grad, seen);
    }
}

// A table for each lane: neighbours, mostly of one bucket, need not wait for one another.
inline void add_to_buckets(float* table, Ints bucket, Floats g) {
    if (alike(bucket)) {
        float* cell = table + bucket[0] * LANES;
        store(cell, load(cell) + g);
        return;
    }
    int32_t cells[LANES];
    float values[LANES];
    std::memcpy(cells, &bucket, sizeof cells);
    std::memcpy(values, &g, sizeof values);
    for (int lane = 0; lane < LANES; lane++) table[cells[lane] * LANES + lane] += values[lane];
}

template <bool TIME, bool DISTANCE, bool KEY>
void add_bias_gradients(const Head& of, const Block& block) {
    for (int64_t r = 0; r < block.queries; r++) {
        const float* grad = of.grads + r * COLUMNS;
        const int64_t seen = visible(block, r), i = block.query + r;
        const Biases<TIME, DISTANCE, KEY> biases(of, i);
        float *by_distance = of.grad_by_distance + of.n - 1 - i + block.key, *key_bias = of.grad_key_bias + block.key;
        float* by_time = of.grad_by_time;
        for (int64_t j = 0; j < seen; j += LANES) {
            const Floats g = load(grad + j);
            if (DISTANCE) store(by_distance + j, load(by_distance + j) + g);
            if (KEY) store(key_bias + j, load(key_bias + j) + g);
            if (TIME) add_to_buckets(by_time, biases.buckets(block.key + j), g);
        }
    }
}

void write_bias_gradients(const Head& of) {
    const SegueAttention& call = of.of;
    const int64_t place = of.user * call.heads + of.head;
    if (call.grad_key_bias)
        for (int64_t j = 0; j < of.n; j++)
            call.grad_key_bias[(of.first + j) * call.heads + of.head] = of.grad_key_bias[j];
    if (call.grad_by_distance)
        for (int64_t d = 0; d < call.longest; d++)
            call.grad_by_distance[place * call.longest + d] = d < of.n ? of.grad_by_distance[of.n - 1 - d] : 0;
    if (call.grad_by_time)
        for (int64_t t = 0; t < call.buckets; t++) {
            float total = 0;
            for (int lane = 0; lane < LANES; lane++) total += of.grad_by_time[t * LANES + lane];
            call.grad_by_time[place * call.buckets + t] = total;
        }
}

// The gradient of what attention gives, as that of weighted sums.
void copy_grad_out(const Head& of) {
    const SegueAttention& call = of.of;
    of.copy(call.grad_out, of.F, 1.0f, of.grad_out);
    for (int64_t i = 0; i < of.n; i++) {
        float* grad = of.grad_out + i * of.F;
        if (!call.softmax) {
            for (int64_t f = 0; f < of.F; f++) grad[f] /= call.divisors[of.first + i];
            continue;
        }
        const float* out = of.row(call.out, i);
        float total = 0;
        for (int64_t f = 0; f < call.v.width; f++) total += grad[f] * out[f];
        of.own[i] = total;
    }
}

template <bool TIME, bool DISTANCE, bool KEY>
void backward(const Head& of) {
    using Added = Biases<TIME, DISTANCE, KEY>;
    const SegueAttention& call = of.of;
    of.copy(call.q, of.E, call.scale, of.q);
    of.copy(call.k, of.E, 1.0f, of.k);
    of.copy_turned(call.k, of.E, of.k_turned);
    of.copy_turned(call.v, of.F, of.v_turned);
    copy_grad_out(of);
    std::memset(of.grad_q, 0, of.n * of.E * sizeof(float));
    std::memset(of.grad_k, 0, of.n * of.E * sizeof(float));
    std::memset(of.grad_v, 0, of.n * of.F * sizeof(float));
    std::memset(of.grad_key_bias, 0, of.columns * sizeof(float));
    std::memset(of.grad_by_distance, 0, of.columns * sizeof(float));
    std::memset(of.grad_by_time, 0, LANES * call.buckets * sizeof(float));
    for_blocks(of.n, [&](const Block& block) {
        score(block, of.q, of.k_turned, of.E, of.columns, of.scores);
        score(block, of.grad_out, of.v_turned, of.F, of.columns, of.grads);
        if (call.softmax)
            weights_and_gradients<true, Added>(of, block);
        else
            weights_and_gradients<false, Added>(of, block);
        scatter(block, of.scores, of.grad_out, of.F, of.grad_v);
        scatter(block, of.grads, of.q, of.E, of.grad_k);
        gather(block, of.grads, of.k, of.E, of.grad_q);
        if (TIME || DISTANCE || KEY) add_bias_gradients<TIME, DISTANCE, KEY>(of, block);
    });
    of.write(of.grad_q, of.E, call.grad_q, call.scale);
    of.write(of.grad_k, of.E, call.grad_k, 1.0f);
    of.write(of.grad_v, of.F, call.grad_v, 1.0f);
    write_bias_gradients(of);
}

template <bool TIME, bool DISTANCE, bool KEY>
void for_heads(const SegueAttention& call, bool is_backward) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t item = 0; item < call.users * call.heads; item++) {
        const Head head(call, item, is_backward);
        if (head.n == 0) continue;
        if (is_backward)
            backward<TIME, DISTANCE, KEY>(head);
        else
            forward<Biases<TIME, DISTANCE, KEY>>(head);
    }
}

void run(const SegueAttention& call, bool is_backward) {
    const bool time = call.by_time, distance = call.by_distance, key = call.key_bias;
    if (time && distance && key) return for_heads<true, true, true>(call, is_backward);
    if (time && distance) return for_heads<true, true, false>(call, is_backward);
    if (time && key) return for_heads<true, false, true>(call, is_backward);
    if (time) return for_heads<true, false, false>(call, is_backward);
    if (distance && key) return for_heads<false, true, true>(call, is_backward);
    if (distance) return for_heads<false, true, false>(call, is_backward);
    if (key) return for_heads<false, false, true>(call, is_backward);
    for_heads<false, false, false>(call, is_backward);
}

}  // namespace

extern "C" {

void segue_attention_forward(const SegueAttention* call) { run(*call, false); }

void segue_attention_backward(const SegueAttention* call) { run(*call, true); }

}  // extern "C"
