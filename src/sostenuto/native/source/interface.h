// The C interface of the library: plain structs of pointers and sizes, no torch types.
//
// Tensors are contiguous, float32 and int64 unless said otherwise. Nobody here allocates what the caller keeps.

#pragma once

#include <cstdint>

// Target attention with a factored activation unit; letters as in ops/target_attention.py.
struct AttentionShape {
  int64_t requests;              // B
  int64_t dim;                   // D
  int64_t units;                 // H
  int64_t width;                 // V
  int64_t normalise;             // 0 none, 1 softmax, 2 divided by the root of the length
  int64_t threads;
  const int64_t* query_offsets;  // (B + 1,)
  const int64_t* key_offsets;    // (B + 1,)
  const int64_t* pair_offsets;   // (B + 1,), of candidates times behaviours
};

struct AttentionInputs {
  const float* query;         // (Nc, D)
  const float* query_hidden;  // (Nc, H)
  const float* key;           // (Nh, D)
  const float* key_hidden;    // (Nh, H) or null
  const float* value;         // (Nh, V)
  const float* w_key;         // (H, D)
  const float* w_product;     // (H, D)
  const float* w_above;       // (H,) readout of what is above 0
  const float* w_below;       // (H,) readout of what is below 0: 0 for ReLU
  const float* bias;          // (1,) of the readout
};

struct AttentionOutputs {
  float* out;      // (Nc, V), written
  float* weights;  // (pairs,), per request (candidates, behaviours), written; null: not kept
};

struct AttentionGradients {
  const float* weights;   // as the forward pass kept them
  const float* d_out;     // (Nc, V)
  float* d_query;         // all of these are written; those of the weights are added to and start at 0
  float* d_query_hidden;
  float* d_key;
  float* d_key_hidden;    // or null
  float* d_value;
  float* d_w_key;
  float* d_w_product;
  float* d_w_above;
  float* d_w_below;
  float* d_bias;
};

// Bucket sums of jagged rows; letters as in ops/bucket_sum.py.
struct BucketShape {
  int64_t rows;     // B
  int64_t groups;   // G
  int64_t buckets;  // K
  int64_t sets;     // S
  int64_t width;    // V
  int64_t threads;
  const int64_t* offsets;  // (B + 1,)
};

// Rows of a table.
struct RowsShape {
  int64_t rows;   // of the table; of the sums
  int64_t dim;    // floats of a row
  int64_t count;  // N, how many are looked up
  int64_t threads;
};

// A step of an optimiser on some rows of a table; letters as in ops/row_updates.py.
struct RowUpdate {
  int64_t rows;          // R, of the table
  int64_t dim;           // D
  int64_t count;         // n, rows of the step
  int64_t threads;
  int64_t kind;          // 0 Adam, 1 row-wise Adam, 2 Adagrad, 3 row-wise Adagrad
  int64_t by_frequency;  // is decay divided by the row's own count
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double decay;
};

#define SOSTENUTO_EXPORT __attribute__((visibility("default")))

extern "C" {
// 0 generic, 2 AVX2 with FMA, 3 AVX-512 F, DQ, BW and VL
SOSTENUTO_EXPORT int64_t sostenuto_processor();
SOSTENUTO_EXPORT int64_t sostenuto_version();
SOSTENUTO_EXPORT void sostenuto_attention_forward(const AttentionShape*, const AttentionInputs*, const AttentionOutputs*);
SOSTENUTO_EXPORT void sostenuto_attention_backward(const AttentionShape*, const AttentionInputs*, const AttentionGradients*);
// values (N, V), weights (N, S) float64, ids (N, G) inside [0, K); the table (B, G, K, S, V) float64 is written.
SOSTENUTO_EXPORT void sostenuto_bucket_sums(const BucketShape*, const float* values, const double* weights,
                                            const int64_t* ids, double* table);
SOSTENUTO_EXPORT void sostenuto_bucket_sums_backward(const BucketShape*, const double* weights, const int64_t* ids,
                                                     const double* d_table, float* d_values);
// index (N,) inside [0, rows); out (N, dim) is written.
SOSTENUTO_EXPORT void sostenuto_gather_rows(const RowsShape*, const float* table, const int64_t* index, float* out);
// distinct and place hold N; the return value is how many distinct rows there are, in rising order.
SOSTENUTO_EXPORT int64_t sostenuto_distinct_rows(const RowsShape*, const int64_t* index, int64_t* distinct,
                                                 int32_t* place);
// values (N, dim); sums (rows, dim) are written.
SOSTENUTO_EXPORT void sostenuto_sum_rows(const RowsShape*, const float* values, const int32_t* place, float* sums);
// row (n,) must rise inside [0, R), else nothing is done and 1 comes back; gradient (n, D). Changed in place: table
// (R, D), first (R, D) or null, second (R, D) or (R,) as the kind has it, touches (R,).
SOSTENUTO_EXPORT int64_t sostenuto_update_rows(const RowUpdate*, const int64_t* row, const float* gradient, float* table,
                                               float* first, float* second, int32_t* touches);
// values (N,); the return value is the sum of their squares.
SOSTENUTO_EXPORT double sostenuto_square_sum(const float* values, int64_t count);
}
