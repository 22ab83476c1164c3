// The timed loops of tests/peers/forest.py around the peers that have a C call. Enter: a peer's functions and handles,
// found by the script, and rows. Leave: scores, or the microseconds a row of one pass.
//
// Invariant: a loop adds nothing to a call but what its user in C must do too: build XGBoost's array interface, fill
// TL2cgen's entries.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

// Calls between two looks at the clock take at least so many rows, so that looking costs nothing.
#define ROWS_PER_LOOK 64
#define MOST_COLUMNS 4096

typedef union { int missing; float value; } entry32;
typedef union { int missing; double value; } entry64;

struct peer {
    int kind;
    void *call;
    void *handle;
    const char *parameter;
    const void *rows;
    int64_t row_count;
    int32_t columns;
};

enum { LLEAVES, TL2CGEN_F32, TL2CGEN_F64, LIGHTGBM_FAST, LIGHTGBM_MAT, XGBOOST_DENSE };

typedef void (*lleaves_call)(const double *, double *, int32_t, int32_t);
typedef void (*tl2cgen_f32_call)(entry32 *, int, float *);
typedef void (*tl2cgen_f64_call)(entry64 *, int, double *);
typedef int (*lightgbm_fast_call)(void *, const void *, int64_t *, double *);
typedef int (*lightgbm_mat_call)(void *, const void *, int, int32_t, int32_t, int, int, int, int, const char *,
                                 int64_t *, double *);
typedef int (*xgboost_call)(void *, const char *, const char *, void *, const uint64_t **, uint64_t *, const float **);

enum { LIGHTGBM_F64 = 1, ROW_MAJOR = 1, NORMAL = 0, FROM_FIRST = 0, ALL_TREES = -1, AS_SCORE = 0 };

static const float *row32(const struct peer *p, int64_t row) { return (const float *)p->rows + row * p->columns; }
static const double *row64(const struct peer *p, int64_t row) { return (const double *)p->rows + row * p->columns; }

static int score_tl2cgen_f32(const struct peer *p, int64_t first, int32_t count, double *out) {
    entry32 entries[MOST_COLUMNS];
    for (int32_t row = 0; row < count; ++row) {
        const float *values = row32(p, first + row);
        for (int32_t column = 0; column < p->columns; ++column) {
            if (isnan(values[column])) entries[column].missing = -1;
            else entries[column].value = values[column];
        }
        float score = 0;
        ((tl2cgen_f32_call)p->call)(entries, AS_SCORE, &score);
        out[row] = score;
    }
    return 0;
}

static int score_tl2cgen_f64(const struct peer *p, int64_t first, int32_t count, double *out) {
    entry64 entries[MOST_COLUMNS];
    for (int32_t row = 0; row < count; ++row) {
        const double *values = row64(p, first + row);
        for (int32_t column = 0; column < p->columns; ++column) {
            if (isnan(values[column])) entries[column].missing = -1;
            else entries[column].value = values[column];
        }
        out[row] = 0;
        ((tl2cgen_f64_call)p->call)(entries, AS_SCORE, out + row);
    }
    return 0;
}

static int score_xgboost(const struct peer *p, int64_t first, int32_t count, double *out) {
    char rows[160];
    snprintf(rows, sizeof rows, "{\"data\": [%zu, true], \"shape\": [%d, %d], \"typestr\": \"<f4\", \"version\": 3}",
             (size_t)row32(p, first), count, p->columns);
    const uint64_t *shape;
    uint64_t dimensions;
    const float *scores;
    if (((xgboost_call)p->call)(p->handle, rows, p->parameter, NULL, &shape, &dimensions, &scores)) return -1;
    for (int32_t row = 0; row < count; ++row) out[row] = scores[row];
    return 0;
}

// Scores `count` rows from row `first` on; not 0 where the peer says that it failed.
int score(const struct peer *p, int64_t first, int32_t count, double *out) {
    int64_t length;
    switch (p->kind) {
    case LLEAVES:
        // It adds to what the results hold.
        for (int32_t row = 0; row < count; ++row) out[row] = 0;
        ((lleaves_call)p->call)(row64(p, first), out, 0, count);
        return 0;
    case TL2CGEN_F32: return score_tl2cgen_f32(p, first, count, out);
    case TL2CGEN_F64: return score_tl2cgen_f64(p, first, count, out);
    case LIGHTGBM_FAST:
        for (int32_t row = 0; row < count; ++row) {
            if (((lightgbm_fast_call)p->call)(p->handle, row64(p, first + row), &length, out + row)) return -1;
        }
        return 0;
    case LIGHTGBM_MAT:
        return ((lightgbm_mat_call)p->call)(p->handle, row64(p, first), LIGHTGBM_F64, count, p->columns, ROW_MAJOR,
                                            NORMAL, FROM_FIRST, ALL_TREES, p->parameter, &length, out);
    case XGBOOST_DENSE: return score_xgboost(p, first, count, out);
    default: return -1;
    }
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

// Microseconds a row of a pass of `seconds` or longer over whole batches, all rows in turn; negative for a failure.
double pass_us(const struct peer *p, int32_t batch, double seconds, double *out) {
    const int64_t batches = p->row_count / batch;
    const int looks = (ROWS_PER_LOOK + batch - 1) / batch;
    const double start = now_s();
    for (int64_t calls = 0;;) {
        for (const int64_t end = calls + looks; calls < end; ++calls) {
            if (score(p, calls % batches * batch, batch, out)) return -1;
        }
        const double took = now_s() - start;
        if (took >= seconds) return took * 1e6 / ((double)calls * batch);
    }
}
