// The C interface of the library: plain structs of pointers and sizes, no torch types.
//
// Tensors are contiguous, float32 and int64 unless said otherwise. Nobody here allocates what the caller keeps.

#pragma once

#include <cstdint>

// Target attention with a factored activation unit; letters as in ops/target_attention.py.
struct AttentionShape {
  int64_t requests;              // B
  int64_t candidates;            // Nc
  int64_t behaviours;            // Nh
  int64_t dim;                   // D
  int64_t units;                 // H
  int64_t width;                 // V
  int64_t with_key;              // 1: the keys are summed too, in front of the values
  int64_t normalise;             // 0 none, 1 softmax, 2 divided by the root of the length
  int64_t threads;
  const int64_t* query_offsets;  // (B + 1,)
  const int64_t* key_offsets;    // (B + 1,)
};

struct AttentionInputs {
  const float* query;         // (Nc, D)
  const float* query_hidden;  // (Nc, H)
  const float* key;           // (Nh, D)
  const float* key_hidden;    // (Nh, H) or null
  const float* value;         // (Nh, V), V may be 0 with `with_key`
  const float* w_key;         // (H, D)
  const float* w_product;     // (H, D)
  const float* w_above;       // (H,) readout of what is above 0
  const float* w_below;       // (H,) readout of what is below 0: 0 for ReLU
  const float* bias;          // (1,) of the readout
};

struct AttentionOutputs {
  float* out;      // (Nc, V), or (Nc, D + V) with `with_key`; written
  float* weights;  // (pairs,), request after request (candidates, behaviours), written; null: not kept
  uint64_t* signs;  // (pairs, words), written with the weights: bit h % 64 of word h / 64 is set where pre_h > 0
};

struct AttentionGradients {
  const float* weights;   // as the forward pass kept them
  const uint64_t* signs;  // the same
  const float* d_out;     // like out
  const float* d_weights;  // (pairs,) of the weights themselves, or null
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

// What candidates find in the buckets of their row.
struct InterestShape {
  int64_t rows;       // B
  int64_t groups;     // G
  int64_t buckets;    // K
  int64_t sets;       // S
  int64_t width;      // V
  int64_t parts;      // P, slices of a value that are brought to length 1 each; 0: sums are taken as they are
  int64_t threads;
  const int64_t* offsets;    // (B + 1,) of the candidates
  const int64_t* part_ends;  // (P,), the last one is V
};

// Signatures by random hyperplanes.
struct HashShape {
  int64_t rows;    // N
  int64_t dim;     // D
  int64_t groups;  // G
  int64_t bits;    // tau
  int64_t threads;
};

// Rows of a table.
struct RowsShape {
  int64_t rows;   // of the table; of the sums
  int64_t dim;    // floats of a row
  int64_t count;  // N, how many are looked up
  int64_t threads;
};

// Multiply-adds in registers.
struct PeakShape {
  int64_t rounds;   // of every chain
  int64_t threads;  // each does them all
};

// Search of the nearest behaviours; letters as in ops/top_k.py.
struct SearchShape {
  int64_t requests;              // B
  int64_t width;                 // words of a signature; floats of a vector
  int64_t k;                     // at least 1
  int64_t threads;
  const int64_t* query_offsets;  // (B + 1,)
  const int64_t* key_offsets;    // (B + 1,); the last is below 2 ** 31
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

// What users have done with what is asked; letters as in features/match.py.
constexpr int kHalfLives = 2;

struct MatchShape {
  int64_t requests;     // B
  int64_t behaviours;   // N
  int64_t candidates;   // C
  int64_t levels;
  int64_t first_known;  // keys below it never match
  double day_ms;
  double rate[kHalfLives];           // of decay, per ms
  const int64_t* offsets;            // (B + 1,) of the behaviours
  const int64_t* candidate_offsets;  // (B + 1,)
};

struct MatchInputs {
  const int64_t* time_ms;           // (N,), never decreasing inside a request
  const int64_t* moment;            // (B,) time of the request, ms
  const int64_t* const* key;        // per level of every behaviour, (N,) with the stride of the level
  const int64_t* key_stride;        // (levels,)
  const int64_t* const* asked;      // per level of every candidate, (C,) with the stride of the level
  const int64_t* asked_stride;      // (levels,)
};

// One level of the indices of B users: what each has done with every key that she has met; letters as in features/match.py.
struct MetLevel {
  int64_t candidates;   // C
  int64_t first_known;  // keys below it never match
  int64_t width;        // floats from one row of the result to the next
  double day_ms;
  double rate[kHalfLives];  // of decay, per ms
  const int64_t* offsets;   // (B + 1,) of the keys
  const int64_t* key;       // (U,), rising inside a user
  const int64_t* count;     // (U,)
  const int64_t* last_ms;   // (U,)
  const double* decayed;    // (U, kHalfLives) as they stood at last_ms
  const int64_t* moment;    // (B,) time of the request, ms
  const int64_t* length;    // (B,) behaviours of the user
};

// Piecewise-linear bins times a matrix; letters as in ops/binned_product.py.
struct BinsShape {
  int64_t rows;     // N
  int64_t columns;  // K
  int64_t bins;     // B, of a column
  int64_t units;    // H
  int64_t threads;
};

// Texts and where they stand in a table of slots; see ops/text_index.py.
struct TextTable {
  int64_t texts;
  int64_t slots;           // a power of two, more than texts
  uint64_t seed;
  const char* bytes;       // of all texts, one after another
  const int64_t* offsets;  // (texts + 1,)
};

struct TextSlot {
  uint32_t tag;    // a part of the hash
  int32_t number;  // of the text, -1 none
};

// Recurrent states along jagged rows; letters as in ops/recurrence.py. Every candidate of a request goes through the
// steps of that request in order.
struct RecurrenceShape {
  int64_t requests;   // B
  int64_t candidates;  // Nc
  int64_t steps;      // Nh
  int64_t units;      // H, a multiple of 16
  int64_t cell;       // in the order of ops/recurrence.py
  int64_t every;      // K, at least 1: the backward pass starts from the states before every K-th step
  int64_t threads;
  const int64_t* query_offsets;  // (B + 1,)
  const int64_t* key_offsets;    // (B + 1,)
};

struct RecurrenceInputs {
  const float* inputs;     // (Nh, 3 H) update, reset, candidate; without bias
  const float* attention;  // (pairs,) request after request (candidates, steps), or null where the cell has none
  const float* initial;    // (Nc, H), or null: zeros
  const float* weight;     // (3 H, H) of the states
  const float* bias;       // (3 H,)
};

struct RecurrenceOutputs {
  float* last;    // (Nc, H), written
  float* states;  // (Nh, H), written where there is one candidate per request; null: not
  float* kept;    // states before every K-th step, candidate after candidate, that of the first step left out; or null
};

struct RecurrenceGradients {
  const float* states;    // as the forward pass wrote them, or null
  const float* kept;      // the same
  const float* d_last;    // (Nc, H) or null
  const float* d_states;  // (Nh, H) or null
  float* d_inputs;        // (Nh, 3 H), added to: starts at 0
  float* d_attention;     // (pairs,) written, or null
  float* d_initial;       // (Nc, H) written, or null
  float* d_weight;        // (3 H, H) written
  float* d_bias;          // (3 H,) written
};

#define SOSTENUTO_EXPORT __attribute__((visibility("default")))

extern "C" {
// 0 generic, 2 AVX2 with FMA, 3 AVX-512 F, DQ, BW and VL
SOSTENUTO_EXPORT int64_t sostenuto_processor();
SOSTENUTO_EXPORT int64_t sostenuto_version();
// How many pairs of a candidate and a behaviour there are; -1 or -2 when the offsets of the candidates or of the
// behaviours do not rise from 0 to how many there are. The other two entries take it that they do.
SOSTENUTO_EXPORT int64_t sostenuto_attention_pairs(const AttentionShape*);
SOSTENUTO_EXPORT void sostenuto_attention_forward(const AttentionShape*, const AttentionInputs*, const AttentionOutputs*);
SOSTENUTO_EXPORT void sostenuto_attention_backward(const AttentionShape*, const AttentionInputs*, const AttentionGradients*);
// values (N, V), weights (N, S) float64, place (N,) inside the rows of ids, ids (U, G) int32 inside [0, K); the table
// (B, G, K, S, V) float64 is written.
SOSTENUTO_EXPORT void sostenuto_bucket_sums(const BucketShape*, const float* values, const double* weights,
                                            const int64_t* place, const int32_t* ids, double* table);
SOSTENUTO_EXPORT void sostenuto_bucket_sums_backward(const BucketShape*, const double* weights, const int64_t* place,
                                                     const int32_t* ids, const double* d_table, float* d_values);
// The same table, of which only what candidates in buckets query_ids (Nc, G) ask for need be written.
SOSTENUTO_EXPORT void sostenuto_asked_sums(const InterestShape*, const BucketShape*, const float* values,
                                           const double* weights, const int64_t* place, const int32_t* ids,
                                           const int32_t* query_ids, double* table);
// table as above, ids (Nc, G) int32; out (Nc, S, V) is written.
SOSTENUTO_EXPORT void sostenuto_interests(const InterestShape*, const double* table, const int32_t* ids, float* out);
SOSTENUTO_EXPORT void sostenuto_interests_backward(const InterestShape*, const double* table, const int32_t* ids,
                                                   const float* d_out, double* d_table);
// Both backward passes at once: from what candidates found to the gradient of the values, no gradient of the table.
SOSTENUTO_EXPORT void sostenuto_interests_to_values(const InterestShape*, const BucketShape*, const double* table,
                                                    const int32_t* query_ids, const float* d_out,
                                                    const double* weights, const int64_t* place, const int32_t* ids,
                                                    float* d_values);
// vectors (N, D), planes (D, G tau) float64; ids (N, G) int32 are written.
SOSTENUTO_EXPORT void sostenuto_hash_rows(const HashShape*, const float* vectors, const double* planes, int32_t* ids);
// index (N,) inside [0, rows); out (N, dim) is written.
SOSTENUTO_EXPORT void sostenuto_gather_rows(const RowsShape*, const float* table, const int64_t* index, float* out);
// distinct and place hold N; the return value is how many distinct rows there are, in rising order.
SOSTENUTO_EXPORT int64_t sostenuto_distinct_rows(const RowsShape*, const int64_t* index, int64_t* distinct,
                                                 int32_t* place);
// values (N, dim); sums (rows, dim) are written.
SOSTENUTO_EXPORT void sostenuto_sum_rows(const RowsShape*, const float* values, const int32_t* place, float* sums);
// found (2,) is written: the floating-point operations that were done, and what they came to.
SOSTENUTO_EXPORT void sostenuto_multiply_add_peak(const PeakShape*, double* found);
// query (Nc, width) and key (Nh, width) signatures; positions and distances (Nc, k) are written, -1 where a row is short.
SOSTENUTO_EXPORT void sostenuto_hamming_top_k(const SearchShape*, const int64_t* query, const int64_t* key,
                                              int64_t* positions, int64_t* distances);
// query (Nc, width) and key (Nh, width); positions and products (Nc, k) are written, -1 and -inf where a row is short.
SOSTENUTO_EXPORT void sostenuto_product_top_k(const SearchShape*, const float* query, const float* key,
                                              int64_t* positions, float* products);
// query (Nc, dim), key (N, dim), candidate (count,) rows of the one and behaviour (count,) rows of the other; product
// (count,) is written, and magnitude (count,), the sum of absolute values, unless it is null.
SOSTENUTO_EXPORT void sostenuto_pair_products(const RowsShape*, const float* query, const float* key,
                                              const int64_t* candidate, const int64_t* behaviour, double* product,
                                              double* magnitude);
// row (n,) must rise inside [0, R), else nothing is done and 1 comes back; gradient (n, D). Changed in place: table
// (R, D), first (R, D) or null, second (R, D) or (R,) as the kind has it, touches (R,).
SOSTENUTO_EXPORT int64_t sostenuto_update_rows(const RowUpdate*, const int64_t* row, const float* gradient, float* table,
                                               float* first, float* second, int32_t* touches);
// values (N,); the return value is the sum of their squares.
SOSTENUTO_EXPORT double sostenuto_square_sum(const float* values, int64_t count);
// out (C, 5 levels + 2) is written, columns as in features/match.py; the return value is 0, or 1 or 2 when the offsets of
// the behaviours or of the candidates do not rise from 0 to how many there are: then nothing is done.
SOSTENUTO_EXPORT int64_t sostenuto_match(const MatchShape*, const MatchInputs*, float* out);
// row (C,) in [0, B) and asked (C,) keys; of every row of out (C, width) the first 5 columns are written, as in
// features/match.py.
SOSTENUTO_EXPORT void sostenuto_met(const MetLevel*, const int64_t* row, const int64_t* asked, float* out);
// values (rows,) rise inside every low .. high; position (count,) is written: the first of low .. high that is not below
// bound, or high.
SOSTENUTO_EXPORT void sostenuto_lower_bounds(const RowsShape*, const int64_t* values, const int64_t* bound,
                                             const int64_t* low, const int64_t* high, int64_t* position);
// values (N, K), low and inverse (K, B) where bins begin and end one after another, weight (K, B, H), sums (K, B, H) its
// running sums over bins, bias (H,); out (N, H) is written.
SOSTENUTO_EXPORT void sostenuto_binned_product(const BinsShape*, const float* values, const float* low,
                                               const float* inverse, const float* weight, const float* sums,
                                               const float* bias, float* out);
// Distinct texts are put into slots (slots,) that are all empty.
SOSTENUTO_EXPORT void sostenuto_fill_texts(const TextTable*, TextSlot* slots);
// bytes and offsets (count + 1,) of what is asked for; number (count,) is written, -1 for a text that is not there.
SOSTENUTO_EXPORT void sostenuto_find_texts(const TextTable*, const TextSlot* slots, int64_t count, const char* bytes,
                                           const int64_t* offsets, int64_t* number);
// How many states are kept; -1 or -2 when the offsets of the candidates or of the steps do not rise from 0 to how many
// there are. The other two entries take it that they do.
SOSTENUTO_EXPORT int64_t sostenuto_recurrence_kept(const RecurrenceShape*);
SOSTENUTO_EXPORT void sostenuto_recurrence_forward(const RecurrenceShape*, const RecurrenceInputs*,
                                                   const RecurrenceOutputs*);
SOSTENUTO_EXPORT void sostenuto_recurrence_backward(const RecurrenceShape*, const RecurrenceInputs*,
                                                    const RecurrenceGradients*);
}
