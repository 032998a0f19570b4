// A table from texts to numbers that is asked for many at once, so that their reads wait for memory together.

#include <algorithm>
#include <cstring>

#include "interface.h"

namespace {

constexpr int64_t kAtOnce = 32;

inline uint64_t mixed(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t hash_of(const char* text, int64_t length, uint64_t seed) {
  uint64_t state = seed ^ mixed(static_cast<uint64_t>(length) + 0x9e3779b97f4a7c15ull, 0xd6e8feb86659fd93ull);
  for (; length > 0; length -= 8, text += 8) {
    uint64_t word = 0;
    std::memcpy(&word, text, static_cast<size_t>(std::min<int64_t>(length, 8)));
    state = mixed(state ^ word, 0xa0761d6478bd642full ^ seed);
  }
  return mixed(state, 0xe7037ed1a0b428dbull);
}

inline bool is_same(const char* a, int64_t a_length, const char* b, int64_t b_length) {
  return a_length == b_length && std::memcmp(a, b, static_cast<size_t>(a_length)) == 0;
}

inline uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

}  // namespace

void sostenuto_fill_texts(const TextTable* table, TextSlot* slots) {
  for (int64_t n = 0; n < table->texts; ++n) {
    const char* const text = table->bytes + table->offsets[n];
    const int64_t length = table->offsets[n + 1] - table->offsets[n];
    const uint64_t hash = hash_of(text, length, table->seed);
    uint64_t at = hash & (table->slots - 1);
    while (slots[at].number >= 0) at = (at + 1) & (table->slots - 1);
    slots[at] = {tag_of(hash), static_cast<int32_t>(n)};
  }
}

void sostenuto_find_texts(const TextTable* table, const TextSlot* slots, int64_t count, const char* bytes,
                          const int64_t* offsets, int64_t* number) {
  const uint64_t mask = table->slots - 1;
  for (int64_t start = 0; start < count; start += kAtOnce) {
    const int64_t lanes = std::min(kAtOnce, count - start);
    uint64_t hash[kAtOnce];
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t n = start + i;
      hash[i] = hash_of(bytes + offsets[n], offsets[n + 1] - offsets[n], table->seed);
      __builtin_prefetch(slots + (hash[i] & mask));
    }
    for (int64_t i = 0; i < lanes; ++i)
      if (const int32_t found = slots[hash[i] & mask].number; found >= 0) __builtin_prefetch(table->offsets + found);
    for (int64_t i = 0; i < lanes; ++i)
      if (const int32_t found = slots[hash[i] & mask].number; found >= 0)
        __builtin_prefetch(table->bytes + table->offsets[found]);
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t n = start + i;
      number[n] = -1;
      for (uint64_t at = hash[i] & mask; slots[at].number >= 0; at = (at + 1) & mask) {
        const int64_t found = slots[at].number;
        if (slots[at].tag != tag_of(hash[i])) continue;
        if (!is_same(table->bytes + table->offsets[found], table->offsets[found + 1] - table->offsets[found],
                     bytes + offsets[n], offsets[n + 1] - offsets[n]))
          continue;
        number[n] = found;
        break;
      }
    }
  }
}
