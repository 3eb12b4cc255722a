// Kernels of a training step over sparse codes, for x86 processors with AVX2, or with AVX-512 and its 8-bit dot
// products (VNNI): the pairs above a threshold, reconstruction with the gradient at the code, weight gradients, Adam.
// Two more gather stored rows into batches. cpu_library.py compiles this file; cpu_candidates.py explains the bound on
// the error of an 8-bit product. Matrices are stored row by row.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define VNNI
constexpr int64_t BYTES = 64;   // of a register
constexpr int64_t TOKENS = 14;  // tokens of one tile: 28 accumulators of 32 registers
constexpr int64_t STEPS = 127;  // from zero to the largest weight of a latent
#else
constexpr int64_t BYTES = 32;
constexpr int64_t TOKENS = 5;  // 10 accumulators of 16 registers
constexpr int64_t STEPS = 63;
#endif
constexpr int64_t PANELS = 4;              // panels that share a tile of tokens while it lies in the first cache
constexpr int64_t QUAD = 4;                // columns that lie side by side in a panel
constexpr int64_t HALF = BYTES / QUAD;     // latents of a register, packed at a time
constexpr int64_t LANES = 2 * HALF;        // latents side by side in a panel
constexpr int64_t OFFSET = STEPS + 1;      // added to a latent's steps: products take one side unsigned
constexpr int64_t SUMMED = 4;              // quads that are added up in 16 bits where there is no VNNI
constexpr int64_t BLOCK = SUMMED * QUAD;   // their columns

// Bytes of a row in 8 bits: it fills whole lines of the cache.
int64_t whole_lines(int64_t width) { return (width + 63) / 64 * 64; }

template <typename T>
struct Register {
  typedef T type __attribute__((vector_size(BYTES)));
  static constexpr int64_t size = BYTES / sizeof(T);
};
typedef Register<float>::type Floats;
typedef Register<int32_t>::type Ints;
typedef int8_t Steps __attribute__((vector_size(BYTES / 4)));
constexpr int64_t SIZE = Register<float>::size;

// A buffer of zeros, aligned for whole registers.
template <typename T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t count) : data(static_cast<T*>(_mm_malloc(count * sizeof(T), 64))) {
    std::memset(data, 0, count * sizeof(T));
  }
  ~Buffer() { _mm_free(data); }
  Buffer(const Buffer&) = delete;
};

// A register filled from a place in memory, which need not be aligned.
template <typename V>
V load(const void* place) {
  V values;
  std::memcpy(&values, place, sizeof values);
  return values;
}

template <typename V>
void store(void* place, V values) {
  std::memcpy(place, &values, sizeof values);
}

// The same where only `left` numbers are left: later lanes are 0, and no memory behind the numbers is read.
template <typename V, typename T>
V load(const T* place, int64_t left) {
  if (left >= static_cast<int64_t>(sizeof(V) / sizeof(T))) return load<V>(place);
  V values = {};
  if (left > 0) std::memcpy(&values, place, left * sizeof(T));
  return values;
}

// A register of numbers in 32 bits, lanes after the first `left` being 0; uint16_t holds the bits of bfloat16.
template <typename T>
Floats floats(const T* row, int64_t left) {
  typedef T Wide __attribute__((vector_size(SIZE * sizeof(T))));
  const Wide values = load<Wide>(row, left);
  if constexpr (std::is_same_v<T, uint16_t>)
    return (Floats)(__builtin_convertvector(values, Ints) << 16);
  else
    return __builtin_convertvector(values, Floats);
}

Floats magnitude(Floats values) { return (Floats)((Ints)values & 0x7fffffff); }

template <typename V>
auto sum(V values) {
  auto total = values[0];
  for (size_t lane = 1; lane < sizeof(V) / sizeof(total); lane++) total += values[lane];
  return total;
}

// The least step at which the sums of a token stay in 16 bits, whatever the latent. Without VNNI the products of two
// columns of every quad are added up over SUMMED quads in 16 bits, and a latent has unsigned steps of at most 2 · STEPS
// + 1.
float least_step(const float* row, int64_t width) {
#ifdef VNNI
  return 0;
#else
  constexpr float budget = 32767 / (2 * STEPS + 1) - SUMMED;  // a step is rounded up by a half at most
  float largest = 0;
  for (int64_t i = 0; i < width; i += BLOCK) {
    float even = 0, odd = 0;
    for (int64_t quad = i; quad < i + BLOCK; quad += QUAD) {
      even += std::fabs(row[quad]) + std::fabs(row[quad + 1]);
      odd += std::fabs(row[quad + 2]) + std::fabs(row[quad + 3]);
    }
    largest = std::max(largest, std::max(even, odd));
  }
  return largest / budget;
#endif
}

// Rounds one row to 8 bits: q = round(factor · row / scale), in [-127, 127] for a token and [-STEPS, STEPS] for a
// latent. Norms are those of the row times the factor. `factor` and `scaled` hold whole lines, `factor` with zeros past
// the width.
template <bool token, typename T>
void quantise(const T* row, const float* factor, int64_t width, int8_t* q, float* scale, float* norm, float* residual,
              float* scaled) {
  constexpr float MIDDLE = 3 << 22;  // a number to which it is added keeps no fraction
  const int64_t padded = whole_lines(width);
  Floats most = {}, squares = {}, rest = {};
  for (int64_t i = 0; i < padded; i += SIZE) {
    Floats value = floats(row + i, width - i) * load<Floats>(factor + i);
    store(scaled + i, value);
    Floats size = magnitude(value);
    most = size > most ? size : most;
    squares += value * value;
  }
  float top = 0;
  for (int64_t lane = 0; lane < SIZE; lane++) top = std::max(top, most[lane]);
  // The largest number is made of whole steps: where all others are as large or 0, nothing is rounded off.
  const float least = token ? least_step(scaled, padded) : 0, most_steps = token ? 127 : STEPS;
  float step = top / (least > 0 ? std::min(std::floor(top / least), most_steps) : most_steps);
  if (!(step > 0)) step = 1;
  const float inverse = 1 / step;
  for (int64_t i = 0; i < padded; i += SIZE) {
    Floats value = load<Floats>(scaled + i), shifted = value * inverse + MIDDLE;
    Ints whole = (Ints)shifted - (Ints)(Floats{} + MIDDLE);
    Floats error = value - __builtin_convertvector(whole, Floats) * step;
    rest += error * error;
    store(q + i, __builtin_convertvector(whole, Steps));
  }
  *scale = step;
  *norm = std::sqrt(sum(squares));
  *residual = std::sqrt(sum(rest)) + 1e-6f * *norm;  // and what 32-bit arithmetic rounds off
}

constexpr int64_t ROWS = 4;  // read side by side: memory serves several requests at once, and additions need not wait

// out[r] = a[r] · b[r]; rows that are needed `soon` are prefetched line by line.
template <typename T>
void dots(const T* const* a, const T* const* b, int64_t width, T* out, const T* const* soon = nullptr) {
  using Lanes = typename Register<T>::type;
  constexpr int64_t size = Register<T>::size, line = 64 / sizeof(T);
  Lanes sums[ROWS] = {};
  int64_t i = 0;
  for (; i + line <= width; i += line)
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; r++) {
      if (soon) __builtin_prefetch(soon[r] + i);
      for (int64_t j = i; j < i + line; j += size) sums[r] += load<Lanes>(a[r] + j) * load<Lanes>(b[r] + j);
    }
  for (int64_t r = 0; r < ROWS; r++) {
    T total = sum(sums[r]);
    for (int64_t rest = i; rest < width; rest++) total += a[r][rest] * b[r][rest];
    out[r] = total;
  }
}

// Products in 8 bits of `count` tokens with a panel of latents, (count, LANES).
#ifdef VNNI
template <int count>
void multiply(const int8_t* x, int64_t stride, const uint8_t* panel, int32_t* products) {
  __m512i low[count], high[count];  // they stay in registers: every loop over them is unrolled
#pragma GCC unroll 14
  for (int t = 0; t < count; t++) low[t] = high[t] = _mm512_setzero_si512();
  for (int64_t quad = 0; quad < stride / QUAD; quad++) {
    const uint8_t* four_columns = panel + quad * LANES * QUAD;
    __m512i first = _mm512_load_si512(four_columns), second = _mm512_load_si512(four_columns + BYTES);
#pragma GCC unroll 14
    for (int t = 0; t < count; t++) {
      int32_t four;
      std::memcpy(&four, x + t * stride + quad * QUAD, QUAD);
      __m512i values = _mm512_set1_epi32(four);
      low[t] = _mm512_dpbusd_epi32(low[t], first, values);
      high[t] = _mm512_dpbusd_epi32(high[t], second, values);
    }
  }
#pragma GCC unroll 14
  for (int t = 0; t < count; t++) {
    _mm512_store_si512(products + t * LANES, low[t]);
    _mm512_store_si512(products + t * LANES + HALF, high[t]);
  }
}
#else
// Products of unsigned and signed steps, added up in twos, in 16 bits. They are written in assembly because compilers
// reorder such sums of integers and then keep them outside of registers, which takes 1.6 times as long.
inline void set_products(__m256i& sums, __m256i positive, __m256i either) {
  asm("vpmaddubsw %2, %1, %0" : "=x"(sums) : "x"(positive), "x"(either));
}

inline void add_products(__m256i& sums, __m256i positive, __m256i either) {
  __m256i two;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sums), "=&x"(two) : "x"(positive), "x"(either));
}

// Sums of every two numbers of 16 bits, in 32 bits. The ones they are multiplied with stay in memory: no register is
// left.
inline __m256i widened(__m256i sums) {
  alignas(BYTES) static const int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  __m256i totals;
  asm("vpmaddwd %2, %1, %0" : "=x"(totals) : "x"(sums), "m"(ones));
  return totals;
}

template <int count>
__attribute__((noinline)) void multiply(const int8_t* x, int64_t stride, const uint8_t* panel, int32_t* products) {
  auto total = reinterpret_cast<__m256i*>(products);
  for (int t = 0; t < 2 * count; t++) total[t] = _mm256_setzero_si256();
  for (int64_t block = 0; block < stride; block += BLOCK) {
    __m256i low[count], high[count];  // pairs of columns in 16 bits; registers, as above
    auto with = [&](int64_t quad, auto products_of) {
      const uint8_t* four_columns = panel + (block + quad * QUAD) * LANES;
      __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(four_columns));
      __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(four_columns + BYTES));
#pragma GCC unroll 5
      for (int t = 0; t < count; t++) {
        int32_t four;
        std::memcpy(&four, x + t * stride + block + quad * QUAD, QUAD);
        __m256i values = _mm256_set1_epi32(four);
        products_of(low[t], first, values);
        products_of(high[t], second, values);
      }
    };
    with(0, set_products);
#pragma GCC unroll 3
    for (int64_t quad = 1; quad < SUMMED; quad++) with(quad, add_products);
#pragma GCC unroll 5
    for (int t = 0; t < count; t++) {
      total[2 * t] = _mm256_add_epi32(total[2 * t], widened(low[t]));
      total[2 * t + 1] = _mm256_add_epi32(total[2 * t + 1], widened(high[t]));
    }
  }
}
#endif

// A bit for every lane, set where the lane is true.
uint32_t bits(Ints lanes) {
#ifdef VNNI
  return _mm512_movepi32_mask((__m512i)lanes);
#else
  return _mm256_movemask_ps((__m256)lanes);
#endif
}

// Steps of rows in 8 bits, norms of the rows, and norms of what rounding cut off.
struct Rows {
  const float *scale, *norm, *residual;
};

// Bit l of masks[t] says that latent l of a panel may exceed its threshold at token t.
template <int count>
void tile(const int8_t* x, int64_t stride, const uint8_t* panel, const int32_t* sums, Rows tokens, Rows latents,
          const float* bias, const float* threshold, float deviations, uint32_t* masks) {
  alignas(64) int32_t products[count * LANES];
  multiply<count>(x, stride, panel, products);
  for (int t = 0; t < count; t++) {
    masks[t] = 0;
    for (int64_t j = 0; j < LANES; j += SIZE) {
      Ints whole = load<Ints>(products + t * LANES + j) - static_cast<int32_t>(OFFSET) * sums[t];
      Floats value = __builtin_convertvector(whole, Floats) * (tokens.scale[t] * load<Floats>(latents.scale + j));
      Floats p = tokens.residual[t] * load<Floats>(latents.norm + j);
      Floats q = tokens.norm[t] * load<Floats>(latents.residual + j);
      // sqrt(p² + q²) ≤ max(p, q) + (√2 − 1) min(p, q)
      Floats error = p > q ? p + 0.41422f * q : q + 0.41422f * p;
      Floats bound = value + load<Floats>(bias + j) + deviations * error;
      masks[t] |= bits(bound > load<Floats>(threshold + j)) << j;
    }
  }
}

// Puts HALF rows in 8 bits into a panel: the quads of all rows side by side, the next columns a panel's width further.
void pack(const int8_t* rows, int64_t stride, uint8_t* out) {
  for (int64_t quad = 0; quad < stride / QUAD; quad++)
    for (int64_t r = 0; r < HALF; r++) {
      uint32_t four;
      std::memcpy(&four, rows + r * stride + quad * QUAD, QUAD);
      four = (four ^ 0x80808080u) - (128 - OFFSET) * 0x01010101u;  // changes every byte by itself: nothing is carried
      std::memcpy(out + (quad * LANES + r) * QUAD, &four, QUAD);
    }
}

template <int count>
void tiles(int64_t wanted, const int8_t* x, int64_t stride, const uint8_t* panel, const int32_t* sums, Rows tokens,
           Rows latents, const float* bias, const float* threshold, float deviations, uint32_t* masks) {
  if (wanted == count)
    tile<count>(x, stride, panel, sums, tokens, latents, bias, threshold, deviations, masks);
  else if constexpr (count > 1)
    tiles<count - 1>(wanted, x, stride, panel, sums, tokens, latents, bias, threshold, deviations, masks);
}

// Keeps those of the pairs [from, to) whose value in full precision exceeds the latent's threshold; returns where they
// end.
template <typename T>
int64_t above_in_full(const T* x, const T* encoder, const T* bias, const T* threshold, int64_t m, int64_t width,
                      int64_t* index, T* values, int64_t from, int64_t to) {
  auto token = [&](int64_t pair) { return x + index[pair < to ? pair : to - 1] / m * width; };
  auto latent = [&](int64_t pair) { return encoder + index[pair < to ? pair : to - 1] % m * width; };
  const T *tokens[ROWS], *latents[ROWS], *soon[ROWS];
  int64_t kept = from;
  for (int64_t p = from; p < to; p += ROWS) {
    T value[ROWS];
    for (int64_t i = 0; i < ROWS; i++) {
      tokens[i] = token(p + i);
      latents[i] = latent(p + i);
      soon[i] = token(p + ROWS + i);  // the latents are few, and their rows lie in the second-level cache
    }
    dots(tokens, latents, width, value, soon);
    for (int64_t i = 0; i < ROWS && p + i < to; i++) {
      int64_t pair = index[p + i], j = pair % m;
      value[i] += bias[j];
      if (!(value[i] > threshold[j])) continue;
      index[kept] = pair;
      values[kept++] = value[i];
    }
  }
  return kept;
}

// Finds, tile by tile, the pairs of tokens and latents in [first, last) whose pre-activation exceeds the latent's
// threshold, and returns their number; -1 where more than `capacity` would have to be computed in full.
template <typename T>
int64_t scan(const T* x, const int8_t* x8, const int32_t* sums, const float* x_scale, const float* x_norm,
             const float* x_residual, int64_t count, const T* encoder, const T* bias, const T* threshold,
             const float* factor, int64_t first, int64_t last, int64_t m, int64_t width, float deviations, int64_t* index,
             T* values, int64_t capacity) {
  const int64_t stride = whole_lines(width), rows = PANELS * LANES;
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
      // The threshold is lowered by what 32-bit arithmetic may round off a bias and a threshold.
      above[r] = j < last ? static_cast<float>(threshold[j] - 1e-6 * (std::fabs(threshold[j]) + std::fabs(bias[j])))
                          : INFINITY;
      int8_t* row = q.data + r % HALF * stride;
      if (j < last)
        quantise<false>(encoder + j * width, factor, width, row, scale + r, norm + r, residual + r, scaled.data);
      else
        scale[r] = norm[r] = residual[r] = 0.0f;
      int64_t begun = r % LANES - r % HALF;  // the first of these lanes in the panel
      if (r % HALF == HALF - 1) pack(q.data, stride, packed.data + r / LANES * LANES * stride + begun * QUAD);
    }
    uint32_t masks[TOKENS];
    int64_t candidates = filled;
    for (int64_t t = 0; t < count; t += TOKENS) {
      int64_t some = count - t < TOKENS ? count - t : TOKENS;
      for (int64_t panel = 0; panel < PANELS && group + panel * LANES < last; panel++) {
        int64_t r = panel * LANES;
        tiles<TOKENS>(some, x8 + t * stride, stride, packed.data + r * stride, sums + t,
                      {x_scale + t, x_norm + t, x_residual + t}, {scale + r, norm + r, residual + r}, offset + r,
                      above + r, deviations, masks);
        for (int64_t i = 0; i < some; i++)
          for (uint32_t mask = masks[i]; mask; mask &= mask - 1) {
            if (candidates == capacity) return -1;
            index[candidates++] = (t + i) * m + group + r + __builtin_ctz(mask);
          }
      }
    }
    filled = above_in_full(x, encoder, bias, threshold, m, width, index, values, filled, candidates);
  }
  return filled;
}

template <typename T>
void quantise_tokens(const T* x, const float* factor, int64_t count, int64_t width, int8_t* x8, int32_t* sums,
                     float* scale, float* norm, float* residual) {
  const int64_t stride = whole_lines(width);
  Buffer<float> scaled(stride);
  for (int64_t t = 0; t < count; t++) {
    int8_t* q = x8 + t * stride;
    quantise<true>(x + t * width, factor, width, q, scale + t, norm + t, residual + t, scaled.data);
    int32_t total = 0;
    for (int64_t i = 0; i < width; i++) total += q[i];
    sums[t] = total;
  }
}

template <typename V>
void past_caches(void* place, V value) {
#ifdef VNNI
  _mm512_stream_si512(static_cast<__m512i*>(place), (__m512i)value);
#else
  _mm256_stream_si256(static_cast<__m256i*>(place), (__m256i)value);
#endif
}

// Kernels over pairs sorted by latent work on a few columns at a time, on so many that these columns of all tokens lie
// in the second-level cache, and those of one latent in REGISTERS registers.
template <typename T, int REGISTERS>
struct Columns {
  using Lanes = typename Register<T>::type;
  static constexpr int64_t size = Register<T>::size, count = REGISTERS * size;
  int64_t first, width;

  Columns(int64_t chunk, int64_t width) : first(chunk * count), width(width) {}

  // Bytes of a register that lie inside the matrix.
  size_t inside(int64_t r) const {
    int64_t left = width - first - r * size;
    return left >= size ? BYTES : left > 0 ? left * sizeof(T) : 0;
  }

  void read(const T* matrix, int64_t row, Lanes* into) const {
    const T* from = matrix + row * width + first;
    const bool whole = first + count <= width;
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++)
      if (whole)
        into[r] = load<Lanes>(from + r * size);
      else
        std::memcpy(&(into[r] = Lanes{}), from + r * size, inside(r));
  }

  void write(T* matrix, int64_t row, const Lanes* values) const {
    T* to = matrix + row * width + first;
    for (int r = 0; r < REGISTERS; r++) std::memcpy(to + r * size, values + r, inside(r));
  }

  // Writes past the caches, which suits what is read again only after all other rows; it takes whole lines.
  void stream(T* matrix, int64_t row, const Lanes* values) const {
    T* to = matrix + row * width + first;
    if (reinterpret_cast<uintptr_t>(to) % 64 || first + count > width) return write(matrix, row, values);
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) past_caches(to + r * size, values[r]);
  }

  void fetch(const T* matrix, int64_t row, int64_t rows) const {
    if (row >= rows) return;
#pragma GCC unroll 8
    for (int r = 0; r < REGISTERS; r++) __builtin_prefetch(matrix + row * width + first + r * size);
  }
};

constexpr int64_t PREFETCHED = 8;  // latents whose columns are prefetched before their turn, as rows lie pages apart

// Pairs sorted by latent: those of latent j are [offsets[j], offsets[j + 1]).
template <typename T>
struct Pairs {
  const int64_t *offsets, *tokens;
  const T* values;
  int64_t count, latents;
};

// Computes, for some columns, the error x − x̂ of a code, the gradient scale · weights · error at x̂, and what these
// columns add to the gradient at every value of the code.
template <typename T, int REGISTERS>
void reconstruct(Pairs<T> pairs, const T* x, const T* decoder, const T* bias, const T* weights, T scale, int64_t chunk,
                 int64_t width, T* error, T* gradient, T* slopes) {
  using C = Columns<T, REGISTERS>;
  using Lanes = typename C::Lanes;
  const C columns(chunk, width);
  Buffer<T> buffer(pairs.count * C::count);
  Lanes row[REGISTERS], factor[REGISTERS];
  columns.read(bias, 0, row);
  auto of = [&](int64_t token) { return reinterpret_cast<Lanes*>(buffer.data + token * C::count); };
  for (int64_t t = 0; t < pairs.count; t++)
    for (int r = 0; r < REGISTERS; r++) of(t)[r] = row[r];
  for (int64_t j = 0; j < pairs.latents; j++) {
    columns.fetch(decoder, j + PREFETCHED, pairs.latents);
    columns.read(decoder, j, row);
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      Lanes* total = of(pairs.tokens[p]);
#pragma GCC unroll 8
      for (int r = 0; r < REGISTERS; r++) total[r] += pairs.values[p] * row[r];
    }
  }
  columns.read(weights, 0, factor);
  for (int64_t t = 0; t < pairs.count; t++) {
    columns.read(x, t, row);
    for (int r = 0; r < REGISTERS; r++) row[r] -= of(t)[r];
    columns.write(error, t, row);
    for (int r = 0; r < REGISTERS; r++) of(t)[r] = scale * factor[r] * row[r];
    columns.write(gradient, t, of(t));
  }
  for (int64_t j = 0; j < pairs.latents; j++) {
    columns.fetch(decoder, j + PREFETCHED, pairs.latents);
    columns.read(decoder, j, row);
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      const Lanes* slope = of(pairs.tokens[p]);
      Lanes total = slope[0] * row[0];
#pragma GCC unroll 8
      for (int r = 1; r < REGISTERS; r++) total += slope[r] * row[r];
      slopes[p] = sum(total);
    }
  }
}

// The same for whole rows of the tokens [first, last), for codes so sparse that reading columns of all latents costs
// more. The pairs are sorted by token; a token's rows of the decoder still lie in the second-level cache when they are
// read again.
template <typename T>
void reconstruct_rows(const int64_t* offsets, const int64_t* latents, const T* values, const T* x, const T* decoder,
                      const T* bias, const T* weights, T scale, int64_t first, int64_t last, int64_t width, T* error,
                      T* gradient, T* slopes) {
  for (int64_t t = first; t < last; t++) {
    T *e = error + t * width, *g = gradient + t * width;
    std::memcpy(g, bias, width * sizeof(T));
    const T *same[ROWS] = {g, g, g, g}, *row[ROWS];
    T number[ROWS];  // values of four pairs, then slopes
    auto four = [&](int64_t p) {  // rows of four pairs; after the last pair, that of `p` again
      for (int64_t r = 0; r < ROWS; r++) row[r] = decoder + latents[p + r < offsets[t + 1] ? p + r : p] * width;
    };
    for (int64_t p = offsets[t]; p < offsets[t + 1]; p += ROWS) {
      four(p);
      for (int64_t r = 0; r < ROWS; r++) number[r] = p + r < offsets[t + 1] ? values[p + r] : T(0);
      for (int64_t i = 0; i < width; i++)
        g[i] += number[0] * row[0][i] + number[1] * row[1][i] + number[2] * row[2][i] + number[3] * row[3][i];
    }
    for (int64_t i = 0; i < width; i++) {
      e[i] = x[t * width + i] - g[i];
      g[i] = scale * weights[i] * e[i];
    }
    for (int64_t p = offsets[t]; p < offsets[t + 1]; p += ROWS) {
      four(p);
      dots(same, row, width, number);
      for (int64_t r = 0; r < ROWS && p + r < offsets[t + 1]; r++) slopes[p + r] = number[r];
    }
  }
}

// Computes some columns of Σ value · row over the pairs of every latent, and the sums of their squares. Rows of latents
// without a pair are left as they are.
template <typename T, int REGISTERS>
void weight_gradient(Pairs<T> pairs, const T* rows, int64_t chunk, int64_t width, T* out, T* squares) {
  using C = Columns<T, REGISTERS>;
  using Lanes = typename C::Lanes;
  const C columns(chunk, width);
  Buffer<T> buffer(pairs.count * C::count);
  auto of = [&](int64_t token) { return reinterpret_cast<Lanes*>(buffer.data + token * C::count); };
  for (int64_t t = 0; t < pairs.count; t++) columns.read(rows, t, of(t));
  for (int64_t j = 0; j < pairs.latents; j++) {
    squares[j] = 0;
    if (pairs.offsets[j] == pairs.offsets[j + 1]) continue;
    Lanes total[REGISTERS] = {}, square = {};
    for (int64_t p = pairs.offsets[j]; p < pairs.offsets[j + 1]; p++) {
      const Lanes* row = of(pairs.tokens[p]);
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

// Moments are stored in 32 bits, or in bfloat16, to which sixteen random bits round them.
float moment(float stored) { return stored; }
float moment(uint16_t stored) { return __builtin_bit_cast(float, static_cast<uint32_t>(stored) << 16); }
void keep(float* to, float value, uint32_t) { *to = value; }
void keep(uint16_t* to, float value, uint32_t noise) { *to = (__builtin_bit_cast(uint32_t, value) + noise) >> 16; }

constexpr uint32_t WEYL = 0x9E3779B1;  // difference between the words of neighbouring weights

// 32 random bits for a weight, as `chances` of adam_step.py; `word` is (place + seed) · WEYL.
uint32_t chance(uint32_t word) {
  word = (word ^ word >> 15) * 0x85EBCA77;
  return word ^ word >> 13;
}

// The numbers of one step of Adam, named and ordered as in adam_step.py.
struct AdamNumbers {
  float rate, epsilon, beta1, rest1, beta2, rest2, inverse_clip;
};

// One step of Adam on a row, as in plain.py; where no gradient is given, it is 0. The compiler vectorises the loop.
template <bool given, typename M>
void adam_row(float* __restrict weights, M* __restrict mean, M* __restrict square, const float* __restrict gradient,
              int64_t width, uint32_t word, const AdamNumbers& numbers) {
  const auto [rate, epsilon, beta1, rest1, beta2, rest2, inverse_clip] = numbers;
  for (int64_t i = 0; i < width; i++, word += WEYL) {
    const float g = given ? inverse_clip * gradient[i] : 0;
    const float m = std::fma(beta1, moment(mean[i]), rest1 * g);
    const float v = std::fma(beta2, moment(square[i]), rest2 * (g * g));
    weights[i] = std::fma(-rate, m / (std::sqrt(v) + epsilon), weights[i]);
    const uint32_t noise = chance(word);
    keep(mean + i, m, noise & 0xffff);
    keep(square + i, v, noise >> 16);
  }
}

// One step of Adam on the rows [first, last); the gradient of a row that is not active is 0, and is not read.
template <typename M>
void adam(float* weights, M* mean, M* square, const float* gradient, const uint8_t* active, int64_t first, int64_t last,
          int64_t width, uint32_t seed, const AdamNumbers& numbers) {
  for (int64_t row = first; row < last; row++) {
    const int64_t i = row * width;
    const uint32_t word = (static_cast<uint32_t>(i) + seed) * WEYL;
    auto* step = !active || active[row] ? adam_row<true, M> : adam_row<false, M>;
    step(weights + i, mean + i, square + i, gradient + i, width, word, numbers);
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
                                 const T* bias, const T* threshold, const float* factor, int64_t first, int64_t last,     \
                                 int64_t m, int64_t width, float deviations, int64_t* index, T* values,                   \
                                 int64_t capacity) {                                                                      \
    return scan(x, x8, sums, scale, norm, residual, count, encoder, bias, threshold, factor, first, last, m, width,       \
                deviations, index, values, capacity);                                                                     \
  }                                                                                                                       \
  extern "C" void reconstruct_##name(const int64_t* offsets, const int64_t* tokens, const T* values, int64_t count,        \
                                     int64_t latents, const T* x, const T* decoder, const T* bias, const T* weights,      \
                                     double scale, int64_t chunk, int64_t width, T* error, T* gradient, T* slopes,        \
                                     int registers) {                                                                     \
    auto* kernel = registers == 8 ? reconstruct<T, 8> : registers == 4 ? reconstruct<T, 4> : reconstruct<T, 2>;           \
    kernel({offsets, tokens, values, count, latents}, x, decoder, bias, weights, static_cast<T>(scale), chunk, width,     \
           error, gradient, slopes);                                                                                      \
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
    auto* kernel = registers == 8   ? weight_gradient<T, 8>                                                               \
                   : registers == 4 ? weight_gradient<T, 4>                                                               \
                                    : weight_gradient<T, 2>;                                                              \
    kernel({offsets, tokens, values, count, latents}, rows, chunk, width, out, squares);                                  \
  }

extern "C" void adam_float32(float* weights, void* mean, void* square, int narrow, const float* gradient, const uint8_t* active,
                             int64_t first, int64_t last, int64_t width, uint32_t seed, const AdamNumbers* numbers) {
  if (narrow)
    adam(weights, static_cast<uint16_t*>(mean), static_cast<uint16_t*>(square), gradient, active, first, last, width, seed,
         *numbers);
  else
    adam(weights, static_cast<float*>(mean), static_cast<float*>(square), gradient, active, first, last, width, seed, *numbers);
}

// Bytes of a register; a group of columns fills whole registers.
extern "C" int64_t register_bytes() { return BYTES; }

constexpr int64_t PIECE = 32;  // columns of stored activations in a line of the cache
#ifdef VNNI
constexpr bool PAST = false;     // whether rows are written past the caches
constexpr int64_t TOGETHER = 1;  // rows copied side by side
#else
constexpr bool PAST = true;
constexpr int64_t TOGETHER = 8;
#endif

// Writes values to their place in a row, of which `left` numbers are left.
template <typename T, typename V>
void put(T* place, V values, int64_t left) {
  if (left < static_cast<int64_t>(sizeof(V) / sizeof(T)))
    std::memcpy(place, &values, left * sizeof(T));
  else if (PAST && reinterpret_cast<uintptr_t>(place) % BYTES == 0)
    past_caches(place, values);
  else
    store(place, values);
}

// out[t][i] = value(rows[t] + i, others[t] + i, i, left), a register at a time, of which `left` columns count. Rows lie
// apart, so that the hardware prefetches none: the next rows are prefetched beside each piece, and so are their places
// in `out` where these are written through the caches.
template <typename T, typename F>
void by_rows(const uint16_t* const* rows, const uint16_t* const* others, int64_t count, int64_t width, T* out, int64_t stride,
             F value) {
  constexpr int64_t size = Register<T>::size;
  for (int64_t group = 0; group < count; group += TOGETHER) {
    const uint16_t *row[TOGETHER], *other[TOGETHER], *soon[TOGETHER];
    T *to[TOGETHER], *place[TOGETHER];
    for (int64_t r = 0; r < TOGETHER; r++) {  // after the last row, that one again
      const int64_t t = std::min(group + r, count - 1), after = std::min(t + TOGETHER, count - 1);
      row[r] = rows[t], other[r] = others[t], soon[r] = rows[after];
      to[r] = out + t * stride, place[r] = out + after * stride;
    }
    auto piece = [&](int64_t first, int64_t left) {
#pragma GCC unroll 8
      for (int64_t r = 0; r < TOGETHER; r++) {
        __builtin_prefetch(soon[r] + first);
        for (int64_t i = first; !PAST && i < first + PIECE; i += size) __builtin_prefetch(place[r] + i, 1);
        for (int64_t i = first; i < first + std::min(PIECE, left); i += size)
          put(to[r] + i, value(row[r] + i, other[r] + i, i, left - (i - first)), left - (i - first));
      }
    };
    int64_t first = 0;
    for (; first + PIECE <= width; first += PIECE) piece(first, PIECE);
    if (first < width) piece(first, width - first);
  }
  _mm_sfence();
}

// Rows of stored activations, as they are.
extern "C" void stored_rows(const uint16_t* const* rows, int64_t count, int64_t width, uint16_t* out, int64_t stride) {
  by_rows(rows, rows, count, width, out, stride, [](const uint16_t* row, const uint16_t*, int64_t, int64_t left) {
    return load<Register<uint16_t>::type>(row, left);
  });
}

// Rows of stored activations, bfloat16: out = (row − mean) / scale, or (row − other row − mean) / scale.
extern "C" void normalised_rows(const uint16_t* const* rows, const uint16_t* const* others, int64_t count, int64_t width,
                                const float* mean, float scale, float* out, int64_t stride) {
  by_rows(rows, others ? others : rows, count, width, out, stride,
          [=](const uint16_t* row, const uint16_t* other, int64_t i, int64_t left) {
            Floats value = floats(row, left);
            if (others) value -= floats(other, left);
            return (value - floats(mean + i, left)) / scale;
          });
}

EXPORT(float, float32)
EXPORT(double, float64)
