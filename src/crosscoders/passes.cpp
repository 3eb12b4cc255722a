// Passes of a training step over sparse codes, for processors with AVX-512 and its 8-bit dot products (VNNI): the pairs
// above a floor, reconstruction with the gradient at the code, weight gradients; and the rows of the feed. Compiled
// and called by native.py, where the bound on the error of an 8-bit product is explained. Matrices are row by row.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// A buffer of whole registers.
template <typename T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t count) : data(static_cast<T*>(_mm_malloc(count * sizeof(T), 64))) {
    std::memset(data, 0, count * sizeof(T));
  }
  ~Buffer() { _mm_free(data); }
  Buffer(const Buffer&) = delete;
};

constexpr int64_t LANES = 32;   // latents side by side in a packed panel: two registers
constexpr int64_t TOKENS = 14;  // tokens of one tile: 28 accumulators
constexpr int64_t HALF = 16;    // latents packed at a time
constexpr int64_t QUAD = 4;     // columns that one instruction multiplies and adds
constexpr int64_t PANELS = 4;   // panels that share a tile of tokens while it lies in the first cache

// Sixteen numbers from `row` on, of which those in `mask` are read.
__m512 sixteen(const float* row, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, row); }

__m512 sixteen(const double* row, __mmask16 mask) {
  __m256 low = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(mask & 0xff, row));
  __m256 high = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(mask >> 8, row + 8));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// One row in 8 bits: q = round(factor · row / scale) in [-127, 127]. Norms are those of the row times the factor.
// `factor` and `scaled` hold whole registers, `factor` with zeros past the width.
template <typename T>
void quantise(const T* row, const float* factor, int64_t width, int8_t* q, float* scale, float* norm, float* residual,
              float* scaled) {
  __m512 largest = _mm512_setzero_ps(), squares = largest, rest = largest;
  for (int64_t i = 0; i < width; i += 16) {
    __mmask16 inside = width - i < 16 ? (1u << (width - i)) - 1 : 0xffff;
    __m512 value = _mm512_mul_ps(sixteen(row + i, inside), _mm512_load_ps(factor + i));
    _mm512_store_ps(scaled + i, value);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(value));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  float top = _mm512_reduce_max_ps(largest), step = top > 0 ? top / 127.0f : 1.0f;
  __m512 steps = _mm512_set1_ps(step), inverse = _mm512_set1_ps(1.0f / step);
  for (int64_t i = 0; i < width; i += 16) {
    __m512 value = _mm512_load_ps(scaled + i);
    __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
    __m512 error = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), steps, value);
    rest = _mm512_fmadd_ps(error, error, rest);
    _mm_store_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtsepi32_epi8(whole));
  }
  *scale = step;
  *norm = std::sqrt(_mm512_reduce_add_ps(squares));
  *residual = std::sqrt(_mm512_reduce_add_ps(rest)) + 1e-6f * *norm;  // and what 32-bit arithmetic rounds
}

constexpr int64_t ROWS = 4;  // rows read side by side: the memory has several requests at once, additions do not wait

template <typename T>
struct Register {
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T))));
  static constexpr int64_t size = 64 / sizeof(T);
};

// out[r] = a[r] · b[r]
template <typename T>
void dots(const T* const* a, const T* const* b, int64_t width, T* out) {
  using Lanes = typename Register<T>::type;
  constexpr int64_t size = Register<T>::size;
  Lanes sums[ROWS] = {};
  int64_t i = 0;
  for (; i + size <= width; i += size)
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; r++)
      sums[r] += *reinterpret_cast<const Lanes*>(a[r] + i) * *reinterpret_cast<const Lanes*>(b[r] + i);
  for (int64_t r = 0; r < ROWS; r++) {
    T total = 0;
    for (int64_t lane = 0; lane < size; lane++) total += sums[r][lane];
    for (int64_t rest = i; rest < width; rest++) total += a[r][rest] * b[r][rest];
    out[r] = total;
  }
}

// What is known of the rows of one side besides their 8-bit values.
struct Rows {
  const float *scale, *norm, *residual;
};

// 8-bit products of `count` tokens with one panel of latents; bit l of found[t] says that latent l may be above its floor.
template <int count>
void tile(const int8_t* x, int64_t stride, const uint8_t* panel, const int32_t* sums, Rows tokens, Rows latents,
          const float* bias, const float* floor, float deviations, uint32_t* found) {
  __m512i low[count], high[count];  // registers: every loop over them is unrolled
#pragma GCC unroll 14
  for (int t = 0; t < count; t++) low[t] = high[t] = _mm512_setzero_si512();
  for (int64_t quad = 0; quad < stride / QUAD; quad++) {
    const uint8_t* four_columns = panel + quad * LANES * QUAD;
    __m512i first = _mm512_load_si512(four_columns), second = _mm512_load_si512(four_columns + 64);
#pragma GCC unroll 14
    for (int t = 0; t < count; t++) {
      int32_t four;
      std::memcpy(&four, x + t * stride + quad * QUAD, QUAD);
      __m512i values = _mm512_set1_epi32(four);
      low[t] = _mm512_dpbusd_epi32(low[t], first, values);
      high[t] = _mm512_dpbusd_epi32(high[t], second, values);
    }
  }
  alignas(64) int32_t products[count * LANES];
#pragma GCC unroll 14
  for (int t = 0; t < count; t++) {
    _mm512_store_si512(products + t * LANES, low[t]);
    _mm512_store_si512(products + t * LANES + 16, high[t]);
  }
  for (int t = 0; t < count; t++) {
    found[t] = 0;
    __m512 scale = _mm512_set1_ps(tokens.scale[t]), norm = _mm512_set1_ps(tokens.norm[t]);
    __m512 residual = _mm512_set1_ps(tokens.residual[t]);
    for (int64_t j = 0; j < LANES; j += 16) {
      __m512i whole = _mm512_load_si512(products + t * LANES + j);
      whole = _mm512_sub_epi32(whole, _mm512_set1_epi32(128 * sums[t]));
      __m512 size = _mm512_mul_ps(scale, _mm512_load_ps(latents.scale + j));
      __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), size, _mm512_load_ps(bias + j));
      __m512 p = _mm512_mul_ps(residual, _mm512_load_ps(latents.norm + j));
      __m512 q = _mm512_mul_ps(norm, _mm512_load_ps(latents.residual + j));
      // sqrt(p² + q²) ≤ max(p, q) + (√2 − 1) min(p, q)
      __m512 error = _mm512_fmadd_ps(_mm512_set1_ps(0.41422f), _mm512_min_ps(p, q), _mm512_max_ps(p, q));
      __m512 bound = _mm512_fmadd_ps(_mm512_set1_ps(deviations), error, value);
      uint32_t mask = _mm512_cmp_ps_mask(bound, _mm512_load_ps(floor + j), _CMP_GT_OQ);
      found[t] |= mask << j;
    }
  }
}

// Sixteen rows in 8 bits, as columns of sixteen quads, 128 bytes apart: the products take one side unsigned, so 128 is added.
void pack(const int8_t* rows, int64_t stride, uint8_t* out) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i place = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(stride)));
  for (int64_t quad = 0; quad < stride / QUAD; quad++) {
    __m512i column = _mm512_i32gather_epi32(place, rows + quad * QUAD, 1);
    _mm512_store_si512(out + quad * LANES * QUAD, _mm512_xor_si512(column, _mm512_set1_epi32(0x80808080)));
  }
}

template <int count>
void tiles(int64_t wanted, const int8_t* x, int64_t stride, const uint8_t* panel, const int32_t* sums, Rows tokens,
           Rows latents, const float* bias, const float* floor, float deviations, uint32_t* found) {
  if (wanted == count)
    tile<count>(x, stride, panel, sums, tokens, latents, bias, floor, deviations, found);
  else if constexpr (count > 1)
    tiles<count - 1>(wanted, x, stride, panel, sums, tokens, latents, bias, floor, deviations, found);
}

// Pairs of tokens and latents in [first, last) whose pre-activation exceeds the latent's floor, tile by tile; -1 where more
// than `capacity` would have to be computed in full.
template <typename T>
int64_t scan(const T* x, const int8_t* x8, const int32_t* sums, const float* x_scale, const float* x_norm,
             const float* x_residual, int64_t count, const T* encoder, const T* bias, const T* floor, const float* factor,
             int64_t first, int64_t last, int64_t m, int64_t width, float deviations, int64_t* index, T* values,
             int64_t capacity) {
  const int64_t stride = (width + 63) / 64 * 64, rows = PANELS * LANES;
  Buffer<uint8_t> packed(rows * stride);
  Buffer<int8_t> q(HALF * stride);
  Buffer<float> scaled(stride), numbers(5 * rows);
  float *scale = numbers.data, *norm = scale + rows, *residual = norm + rows;
  float *offset = residual + rows, *above = offset + rows;
  int64_t filled = 0;
  for (int64_t group = first; group < last; group += rows) {
    for (int64_t r = 0; r < rows; r++) {
      int64_t j = group + r;
      offset[r] = j < last ? static_cast<float>(bias[j]) : 0.0f;
      // lowered by what 32-bit arithmetic may round off a bias and a floor
      above[r] = j < last ? static_cast<float>(floor[j] - 1e-6 * (std::fabs(floor[j]) + std::fabs(bias[j]))) : INFINITY;
      int8_t* row = q.data + r % HALF * stride;
      if (j < last)
        quantise(encoder + j * width, factor, width, row, scale + r, norm + r, residual + r, scaled.data);
      else
        scale[r] = norm[r] = residual[r] = 0.0f;
      int64_t begun = r % LANES - r % HALF;  // of the panel's lanes
      if (r % HALF == HALF - 1) pack(q.data, stride, packed.data + r / LANES * LANES * stride + begun * QUAD);
    }
    uint32_t found[TOKENS];
    for (int64_t t = 0; t < count; t += TOKENS) {
      int64_t some = count - t < TOKENS ? count - t : TOKENS, candidates = filled;
      for (int64_t panel = 0; panel < PANELS && group + panel * LANES < last; panel++) {
        int64_t r = panel * LANES;
        tiles<TOKENS>(some, x8 + t * stride, stride, packed.data + r * stride, sums + t,
                      {x_scale + t, x_norm + t, x_residual + t}, {scale + r, norm + r, residual + r}, offset + r,
                      above + r, deviations, found);
        for (int64_t i = 0; i < some; i++)
          for (uint32_t mask = found[i]; mask; mask &= mask - 1) {
            if (candidates == capacity) return -1;
            index[candidates++] = (t + i) * m + group + r + __builtin_ctz(mask);
          }
      }
      for (int64_t p = filled; p < candidates; p += ROWS) {
        const T *token[ROWS], *latent[ROWS];
        T value[ROWS];
        for (int64_t i = 0; i < ROWS; i++) {
          int64_t pair = index[p + i < candidates ? p + i : p];
          token[i] = x + pair / m * width;
          latent[i] = encoder + pair % m * width;
        }
        dots(token, latent, width, value);
        for (int64_t i = 0; i < ROWS && p + i < candidates; i++) {
          int64_t pair = index[p + i], j = pair % m;
          value[i] += bias[j];
          if (!(value[i] > floor[j])) continue;
          index[filled] = pair;
          values[filled++] = value[i];
        }
      }
    }
  }
  return filled;
}

template <typename T>
void quantise_tokens(const T* x, const float* factor, int64_t count, int64_t width, int8_t* x8, int32_t* sums,
                     float* scale, float* norm, float* residual) {
  const int64_t stride = (width + 63) / 64 * 64;
  Buffer<float> scaled(stride);
  for (int64_t t = 0; t < count; t++) {
    int8_t* q = x8 + t * stride;
    quantise(x + t * width, factor, width, q, scale + t, norm + t, residual + t, scaled.data);
    int32_t total = 0;
    for (int64_t i = 0; i < width; i++) total += q[i];
    sums[t] = total;
  }
}

__m512 load(const float* row, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, row); }
__m512d load(const double* row, __mmask16 mask) { return _mm512_maskz_loadu_pd(mask, row); }
void store(float* row, __mmask16 mask, __m512 values) { _mm512_mask_storeu_ps(row, mask, values); }
void store(double* row, __mmask16 mask, __m512d values) { _mm512_mask_storeu_pd(row, mask, values); }
float sum(__m512 values) { return _mm512_reduce_add_ps(values); }
double sum(__m512d values) { return _mm512_reduce_add_pd(values); }

// Passes over pairs sorted by latent work on few columns at a time: so many registers' worth that these columns of all
// tokens lie in the second cache, while those of one latent lie in registers.
template <typename T, int REGISTERS>
struct Columns {
  using Lanes = typename Register<T>::type;
  static constexpr int64_t size = Register<T>::size, count = REGISTERS * size;
  int64_t first, width;
  __mmask16 mask[REGISTERS];

  Columns(int64_t chunk, int64_t width) : first(chunk * count), width(width) {
    for (int64_t r = 0; r < REGISTERS; r++) {
      int64_t left = width - first - r * size;
      mask[r] = left >= size ? (1u << size) - 1 : left > 0 ? (1u << left) - 1 : 0;
    }
  }

  void read(const T* matrix, int64_t row, Lanes* into) const {
    const T* from = matrix + row * width + first;
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) into[r] = load(from + r * size, mask[r]);
  }

  void write(T* matrix, int64_t row, const Lanes* values) const {
    T* to = matrix + row * width + first;
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) store(to + r * size, mask[r], values[r]);
  }

  // Past the caches, for what is read again only after all other rows; whole lines alone can be written so.
  void stream(T* matrix, int64_t row, const Lanes* values) const {
    T* to = matrix + row * width + first;
    if (reinterpret_cast<uintptr_t>(to) % 64 || first + count > width) return write(matrix, row, values);
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + r * size), (__m512i)values[r]);
  }

  void fetch(const T* matrix, int64_t row, int64_t rows) const {
    if (row >= rows) return;
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) __builtin_prefetch(matrix + row * width + first + r * size);
  }
};

constexpr int64_t AHEAD = 8;  // latents whose columns are asked for before their turn: rows lie pages apart

// Pairs sorted by latent: those of latent j are [offsets[j], offsets[j + 1]).
template <typename T>
struct Pairs {
  const int64_t *offsets, *tokens;
  const T* values;
  int64_t count, latents;
};

// Of some columns: the error x − x̂ of a code, the gradient scale · weights · error at x̂, and what these columns add to the
// gradient at every value of the code.
template <typename T, int REGISTERS>
void reconstruct(Pairs<T> pairs, const T* x, const T* decoder, const T* bias, const T* weights, T scale, int64_t chunk,
                 int64_t width, T* error, T* gradient, T* slopes) {
  using C = Columns<T, REGISTERS>;
  using Lanes = typename C::Lanes;
  const C columns(chunk, width);
  Buffer<T> buffer(pairs.count * C::count);
  Lanes row[REGISTERS], factor[REGISTERS];
  columns.read(bias, 0, row);
  auto at = [&](int64_t token) { return reinterpret_cast<Lanes*>(buffer.data + token * C::count); };
  for (int64_t t = 0; t < pairs.count; t++)
    for (int r = 0; r < REGISTERS; r++) at(t)[r] = row[r];
  for (int64_t j = 0; j < pairs.latents; j++) {
    columns.fetch(decoder, j + AHEAD, pairs.latents);
    columns.read(decoder, j, row);
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      Lanes* total = at(pairs.tokens[p]);
#pragma GCC unroll 8
      for (int r = 0; r < REGISTERS; r++) total[r] += pairs.values[p] * row[r];
    }
  }
  columns.read(weights, 0, factor);
  for (int64_t t = 0; t < pairs.count; t++) {
    columns.read(x, t, row);
    for (int r = 0; r < REGISTERS; r++) row[r] -= at(t)[r];
    columns.write(error, t, row);
    for (int r = 0; r < REGISTERS; r++) at(t)[r] = scale * factor[r] * row[r];
    columns.write(gradient, t, at(t));
  }
  for (int64_t j = 0; j < pairs.latents; j++) {
    columns.fetch(decoder, j + AHEAD, pairs.latents);
    columns.read(decoder, j, row);
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      const Lanes* slope = at(pairs.tokens[p]);
      Lanes total = slope[0] * row[0];
#pragma GCC unroll 8
      for (int r = 1; r < REGISTERS; r++) total += slope[r] * row[r];
      slopes[p] = sum(total);
    }
  }
}

// The same of whole rows of tokens [first, last), for codes so sparse that reading columns of all latents costs more: the
// pairs are sorted by token, whose rows of the decoder are still in the second cache when they are needed again.
template <typename T>
void reconstruct_rows(const int64_t* offsets, const int64_t* latents, const T* values, const T* x, const T* decoder,
                      const T* bias, const T* weights, T scale, int64_t first, int64_t last, int64_t width, T* error,
                      T* gradient, T* slopes) {
  for (int64_t t = first; t < last; t++) {
    T *e = error + t * width, *g = gradient + t * width;
    std::memcpy(g, bias, width * sizeof(T));
    const T *same[ROWS] = {g, g, g, g}, *row[ROWS];
    T found[ROWS];
    auto four = [&](int64_t p) {  // rows of four pairs; past the last one, the first again
      for (int64_t r = 0; r < ROWS; r++) row[r] = decoder + latents[p + r < offsets[t + 1] ? p + r : p] * width;
    };
    for (int64_t p = offsets[t]; p < offsets[t + 1]; p += ROWS) {
      four(p);
      for (int64_t r = 0; r < ROWS; r++) found[r] = p + r < offsets[t + 1] ? values[p + r] : T(0);
      for (int64_t i = 0; i < width; i++)
        g[i] += found[0] * row[0][i] + found[1] * row[1][i] + found[2] * row[2][i] + found[3] * row[3][i];
    }
    for (int64_t i = 0; i < width; i++) {
      e[i] = x[t * width + i] - g[i];
      g[i] = scale * weights[i] * e[i];
    }
    for (int64_t p = offsets[t]; p < offsets[t + 1]; p += ROWS) {
      four(p);
      dots(same, row, width, found);
      for (int64_t r = 0; r < ROWS && p + r < offsets[t + 1]; r++) slopes[p + r] = found[r];
    }
  }
}

// Some columns of Σ value · row over the pairs of every latent, and their sums of squares. Rows of latents without a pair are
// left as they are.
template <typename T, int REGISTERS>
void weight_gradient(Pairs<T> pairs, const T* rows, int64_t chunk, int64_t width, T* out, T* squares) {
  using C = Columns<T, REGISTERS>;
  using Lanes = typename C::Lanes;
  const C columns(chunk, width);
  Buffer<T> buffer(pairs.count * C::count);
  auto at = [&](int64_t token) { return reinterpret_cast<Lanes*>(buffer.data + token * C::count); };
  for (int64_t t = 0; t < pairs.count; t++) columns.read(rows, t, at(t));
  for (int64_t j = 0; j < pairs.latents; j++) {
    squares[j] = 0;
    if (pairs.offsets[j] == pairs.offsets[j + 1]) continue;
    Lanes total[REGISTERS] = {}, square = {};
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      const Lanes* row = at(pairs.tokens[p]);
#pragma GCC unroll 8
      for (int r = 0; r < REGISTERS; r++) total[r] += pairs.values[p] * row[r];
    }
    columns.stream(out, j, total);
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) square += total[r] * total[r];
    squares[j] = sum(square);
  }
  _mm_sfence();
}

// Moments in 32 bits, and in bfloat16 rounded by sixteen random bits.
__m512 moment(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
__m512 moment(const uint16_t* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
void keep(float* to, __mmask16 mask, __m512 values, __m512i) { _mm512_mask_storeu_ps(to, mask, values); }
void keep(uint16_t* to, __mmask16 mask, __m512 values, __m512i noise) {
  __m512i bits = _mm512_add_epi32(_mm512_castps_si512(values), noise);
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

__m512i hashed(__m512i word, uint32_t factor, int shift) {
  word = _mm512_mullo_epi32(word, _mm512_set1_epi32(static_cast<int32_t>(factor)));
  return _mm512_xor_si512(word, _mm512_srli_epi32(word, shift));
}

// One step of Adam on rows [first, last), as in optimizer.py; rows that are not active have a gradient of 0, which is not read.
template <typename M>
void adam(float* weights, M* mean, M* square, const float* gradient, const uint8_t* active, int64_t first, int64_t last,
          int64_t width, uint32_t seed, const float* options) {
  auto all = [&](int64_t option) { return _mm512_set1_ps(options[option]); };
  const __m512 rate = all(0), root = all(1), beta1 = all(2), rest1 = all(3), beta2 = all(4), rest2 = all(5);
  const __m512 epsilon = all(6), grow = all(7);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t row = first; row < last; row++) {
    const __mmask16 on = !active || active[row] ? 0xffff : 0;
    for (int64_t column = 0; column < width; column += 16) {
      const int64_t i = row * width + column, left = width - column;
      const __mmask16 inside = left < 16 ? (1u << left) - 1 : 0xffff;
      __m512i word = _mm512_setzero_si512();
      if (sizeof(M) == 2) {
        word = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(i) + seed)), lane);
        word = hashed(hashed(word, 0x9E3779B1u, 15), 0x85EBCA77u, 13);
      }
      const __m512 g = _mm512_mul_ps(grow, _mm512_maskz_loadu_ps(inside & on, gradient + i));
      const __m512 m = _mm512_fmadd_ps(beta1, moment(mean + i, inside), _mm512_mul_ps(rest1, g));
      const __m512 v = _mm512_fmadd_ps(beta2, moment(square + i, inside), _mm512_mul_ps(rest2, _mm512_mul_ps(g, g)));
      const __m512 size = _mm512_add_ps(_mm512_div_ps(_mm512_sqrt_ps(v), root), epsilon);
      const __m512 w = _mm512_maskz_loadu_ps(inside, weights + i);
      _mm512_mask_storeu_ps(weights + i, inside, _mm512_fnmadd_ps(rate, _mm512_div_ps(m, size), w));
      keep(mean + i, inside, m, _mm512_and_si512(word, _mm512_set1_epi32(0xffff)));
      keep(square + i, inside, v, _mm512_srli_epi32(word, 16));
    }
  }
}

}  // namespace

#define EXPORT(T, name)                                                                                                   \
  extern "C" void quantise_##name(const T* x, const float* factor, int64_t count, int64_t width, int8_t* x8,              \
                                  int32_t* sums, float* scale, float* norm, float* residual) {                            \
    quantise_tokens(x, factor, count, width, x8, sums, scale, norm, residual);                                            \
  }                                                                                                                       \
  extern "C" int64_t scan_##name(const T* x, const int8_t* x8, const int32_t* sums, const float* scale,                   \
                                 const float* norm, const float* residual, int64_t count, const T* encoder,               \
                                 const T* bias, const T* floor, const float* factor, int64_t first, int64_t last,         \
                                 int64_t m, int64_t width, float deviations, int64_t* index, T* values,                   \
                                 int64_t capacity) {                                                                      \
    return scan(x, x8, sums, scale, norm, residual, count, encoder, bias, floor, factor, first, last, m, width,           \
                deviations, index, values, capacity);                                                                     \
  }                                                                                                                       \
  extern "C" void reconstruct_##name(const int64_t* offsets, const int64_t* tokens, const T* values, int64_t count,        \
                                     int64_t latents, const T* x, const T* decoder, const T* bias, const T* weights,      \
                                     double scale, int64_t chunk, int64_t width, T* error, T* gradient, T* slopes,        \
                                     int registers) {                                                                     \
    auto* pass = registers == 8 ? reconstruct<T, 8> : registers == 4 ? reconstruct<T, 4> : reconstruct<T, 2>;             \
    pass({offsets, tokens, values, count, latents}, x, decoder, bias, weights, static_cast<T>(scale), chunk, width,       \
         error, gradient, slopes);                                                                                        \
  }                                                                                                                       \
  extern "C" void reconstruct_rows_##name(const int64_t* offsets, const int64_t* latents, const T* values, const T* x,    \
                                          const T* decoder, const T* bias, const T* weights, double scale,                \
                                          int64_t first, int64_t last, int64_t width, T* error, T* gradient,              \
                                          T* slopes) {                                                                    \
    reconstruct_rows(offsets, latents, values, x, decoder, bias, weights, static_cast<T>(scale), first, last, width,      \
                     error, gradient, slopes);                                                                            \
  }                                                                                                                       \
  extern "C" void weight_gradient_##name(const int64_t* offsets, const int64_t* tokens, const T* values, int64_t count,   \
                                         int64_t latents, const T* rows, int64_t chunk, int64_t width, T* out,            \
                                         T* squares, int registers) {                                                     \
    auto* pass = registers == 8 ? weight_gradient<T, 8> : registers == 4 ? weight_gradient<T, 4> : weight_gradient<T, 2>; \
    pass({offsets, tokens, values, count, latents}, rows, chunk, width, out, squares);                                    \
  }

extern "C" void adam_float32(float* weights, void* mean, void* square, int narrow, const float* gradient, const uint8_t* active,
                             int64_t first, int64_t last, int64_t width, uint32_t seed, const float* options) {
  if (narrow)
    adam(weights, static_cast<uint16_t*>(mean), static_cast<uint16_t*>(square), gradient, active, first, last, width, seed,
         options);
  else
    adam(weights, static_cast<float*>(mean), static_cast<float*>(square), gradient, active, first, last, width, seed, options);
}

constexpr int64_t PIECE = 32;  // columns of stored activations in a line of the cache

// `copy(t, to, first, last)` for every piece of every row. Rows lie apart, where no hardware looks ahead: the next one, and
// the place that it goes to, are asked for beside each piece.
template <typename T, typename F>
void by_rows(const uint16_t* const* rows, int64_t count, int64_t width, T* out, int64_t stride, F copy) {
  for (int64_t t = 0; t < count; t++) {
    const int64_t after = t + 1 < count ? t + 1 : t;
    for (int64_t first = 0; first < width; first += PIECE) {
      const char* place = reinterpret_cast<const char*>(out + after * stride + first);
      __builtin_prefetch(rows[after] + first);
      for (size_t byte = 0; byte < PIECE * sizeof(T); byte += 64) __builtin_prefetch(place + byte, 1);
      if (first + PIECE <= width)
        copy(t, out + t * stride, first, first + PIECE);
      else
        copy(t, out + t * stride, first, width);
    }
  }
}

// Rows of stored activations, as they are.
extern "C" void stored_rows(const uint16_t* const* rows, int64_t count, int64_t width, uint16_t* out, int64_t stride) {
  by_rows(rows, count, width, out, stride, [=](int64_t t, uint16_t* to, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) to[i] = rows[t][i];
  });
}

// Rows of stored activations, bfloat16: out = (row − mean) / scale, or (row − other row − mean) / scale.
extern "C" void normalised_rows(const uint16_t* const* rows, const uint16_t* const* others, int64_t count, int64_t width,
                                const float* mean, float scale, float* out, int64_t stride) {
  auto value = [](uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float found;
    std::memcpy(&found, &wide, sizeof found);
    return found;
  };
  by_rows(rows, count, width, out, stride, [=](int64_t t, float* to, int64_t first, int64_t last) {
    const uint16_t* row = rows[t];
    if (others) {
      const uint16_t* other = others[t];
      for (int64_t i = first; i < last; i++) to[i] = (value(row[i]) - value(other[i]) - mean[i]) / scale;
    } else {
      for (int64_t i = first; i < last; i++) to[i] = (value(row[i]) - mean[i]) / scale;
    }
  });
}

EXPORT(float, float32)
EXPORT(double, float64)
