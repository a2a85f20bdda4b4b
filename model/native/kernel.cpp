// The network and the choice of tokens on a CPU, for model/native/backend.py: a plain C interface.
//
// One call computes all layers for some rows, each a token at a position of a slot's sequence: rows
// of several slots (decode) or several rows of one (prefill). Each sum runs in an order that does
// not depend on the other rows, so that a row's numbers are the same whatever is computed beside
// it. Activations and sums are float32; weights are float32, bfloat16 or int8 with a factor for
// each output.
//
// A weight matrix (outputs, inputs) is stored in panels of 32 outputs, [panel][input][32], so that
// one pass over a panel reads memory in order, has an independent sum in each lane and serves
// several rows.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__)  // of gcc's own header of vector instructions
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define MOST_ROWS 6  // rows that share a pass over a panel: as many as sums fit in registers
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define MOST_ROWS 2
#else
#define LANES 4
#define MOST_ROWS 2
#endif

namespace {

constexpr int kPanel = 32;             // outputs of a panel
constexpr int kVectors = kPanel / LANES;
constexpr int kKeys = 64;              // positions of a block of keys
constexpr int kKeyVectors = kKeys / LANES;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline Floats load(const uint16_t* from) {  // bfloat16: the upper half of a float32
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Ints) << 16);
}
inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)  // gcc 12 makes much more than one instruction of the general form
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  Bytes x;
  std::memcpy(&x, from, sizeof x);
  return __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
#endif
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline float value(float x) { return x; }
inline float value(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline float value(int8_t x) { return x; }

inline Floats all(float x) { return x - Floats{}; }

// Whether a comparison holds in any lane.
inline bool any(Ints x) {
  uint64_t parts[LANES / 2], together = 0;
  std::memcpy(parts, &x, sizeof x);
  for (const uint64_t part : parts) together |= part;
  return together != 0;
}

inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

// e^x to about 1e-7 of it, for x up to 88; 0 below -87.
inline Floats exponential(Floats x) {
  const Floats low = all(-87.0f);
  const Ints tiny = x < low;
  x = tiny ? low : x;
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const Ints power = ((Ints)shifted - (Ints)magic + 127) << 23;
  y = y * (Floats)power;
  return tiny ? Floats{} : y;
}

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Threads that all run the same function; they sleep when nothing has been asked for a while.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int number = 1; number < size; number++)
      threads_.emplace_back([this, number] { work(number); });
  }
  ~Team() {
    leaving_ = true;
    begin();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  template <class Job>
  void run(Job job) {
    if (size_ > 1) {
      argument_ = &job;
      call_ = [](void* argument, int number) { (*static_cast<Job*>(argument))(number); };
      begin();
    }
    job(0);
    barrier();
  }

  // All threads of a job wait here for one another.
  void barrier() {
    if (size_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        round_.store(round + 1, std::memory_order_release);
      }
      wake_.notify_all();
    } else {
      const auto released = [&] { return round_.load(std::memory_order_acquire) != round; };
      // Sleeping costs more than the usual wait, but where others want the cores too, whom one
      // waits for may not even run.
      for (int turn = 0; turn < 2000 && !released(); turn++) relax();
      if (!released()) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, released);
      }
    }
  }

 private:
  void begin() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  void work(int number) {
    for (int seen = 0;; seen++) {
      for (int turn = 0; turn < 20000 && jobs_.load(std::memory_order_acquire) == seen; turn++)
        relax();
      if (jobs_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return jobs_.load(std::memory_order_acquire) != seen; });
      }
      if (leaving_) return;
      call_(argument_, number);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> jobs_{0}, arrived_{0}, round_{0};
  std::atomic<bool> leaving_{false};
  void* argument_ = nullptr;
  void (*call_)(void*, int) = nullptr;
};

// Memory at the start of a cache line; zeros, whose pages exist only once they are written.
class Buffer {
 public:
  explicit Buffer(size_t floats) : memory_(std::calloc(floats + 16, sizeof(float))) {
    if (!memory_) throw std::bad_alloc();
    data_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64);
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() const { return data_; }

 private:
  void* memory_;
  float* data_;
};

}  // namespace

extern "C" {

// Keep these in step with model/native/backend.py.
struct ParleyShape {
  int32_t vocab_size, d_model, layers, heads, kv_heads, head_dim, d_ff, seq_len;
  int32_t slots, format, threads, rows;  // format: bytes of a weight; rows: the most of one call
  float eps;
};
struct ParleyMatrix {
  const void* panels;
  const float* scales;  // of each output; only int8 has them
};
struct ParleyLayer {
  ParleyMatrix qkv, out, gate_up, down;  // gate_up: panels of the two in turn
  const float *attention_norm, *q_norm, *k_norm, *feed_forward_norm;  // q_norm, k_norm may be null
};
struct ParleyWeights {
  const ParleyLayer* layers;
  ParleyMatrix head, embedding;  // embedding: rows; null when it is the head
  const float *norm, *cos, *sin;  // cos, sin: (seq_len, head_dim / 2)
};
// A reply in the making, for the choice of its next token.
struct ParleyReply {
  uint64_t seed;
  double temperature, top_p, min_p, repetition_penalty;
  int32_t top_k;     // 0: all
  int32_t position;  // of the next token in the reply
  int32_t token;     // the newest, not yet in the slot
  int32_t length;    // tokens in the slot
};

}  // extern "C"

namespace {

class Network {
 public:
  Network(const ParleyShape& shape, const ParleyWeights& weights)
      : s_(shape),
        w_(weights),
        layers_(weights.layers, weights.layers + shape.layers),
        q_width_(shape.heads * shape.head_dim),
        kv_width_(shape.kv_heads * shape.head_dim),
        capacity_((shape.seq_len + kKeys - 1) / kKeys * kKeys),
        wide_head_((shape.head_dim + LANES - 1) / LANES * LANES),
        keys_(cache_floats(shape.head_dim)),
        values_(cache_floats(wide_head_)),
        x_(size_t(shape.rows) * shape.d_model),
        qkv_(size_t(shape.rows) * (q_width_ + 2 * kv_width_)),
        y_(size_t(shape.rows) * q_width_),
        h_(size_t(shape.rows) * shape.d_ff),
        own_size_((size_t(shape.rows) * shape.d_model + capacity_ + 2 * wide_head_ + 64) / 16 * 16),
        own_(own_size_ * shape.threads),
        scratch_(2 * size_t(shape.vocab_size) + 2 * LANES),
        taken_(4 * size_t(shape.layers) + 1),
        seen_(size_t(shape.slots) * shape.vocab_size),
        team_(shape.threads) {
    order_.reserve(shape.vocab_size);
    kept_.reserve(shape.vocab_size);
  }

  // Rows of (slot, token, position). Logits of the rows from `first` on: that of a slot into
  // logits[slot] of (slots, vocab_size) if `by_slot`, else one behind the other.
  void compute(int rows, const int32_t* slots, const int32_t* tokens, const int32_t* positions,
               int first, bool by_slot, float* logits) {
    team_.run([=](int thread) {
      if (s_.format == 4) pass<float>(thread, rows, slots, tokens, positions, first, by_slot, logits);
      else if (s_.format == 2)
        pass<uint16_t>(thread, rows, slots, tokens, positions, first, by_slot, logits);
      else pass<int8_t>(thread, rows, slots, tokens, positions, first, by_slot, logits);
    });
  }

  void forget(int slot) { std::fill_n(seen_.begin() + size_t(slot) * s_.vocab_size, s_.vocab_size, 0); }
  void see(int slot, int token) { seen_[size_t(slot) * s_.vocab_size + token] = 1; }

  int choose(int slot, const ParleyReply& reply, const float* logits);

 private:
  size_t cache_floats(int width) const {
    return size_t(s_.layers) * s_.slots * s_.kv_heads * capacity_ * width;
  }

  template <class W>
  void pass(int thread, int rows, const int32_t* slots, const int32_t* tokens,
            const int32_t* positions, int first, bool by_slot, float* logits);
  template <class W>
  void embed(const int32_t* tokens, int row);
  template <class W, class Use>
  void product(std::atomic<int>& taken, const ParleyMatrix& matrix, int outputs, int inputs,
               const float* x, int rows, Use use);
  template <class W, class Use>
  void share(const ParleyMatrix& matrix, int begin, int end, int inputs, const float* x, int rows,
             Use use);
  void norm(const float* x, const float* weight, int width, float* to) const;
  void turn(float* x, const float* weight, int position, float scale) const;
  void keep(int layer, int slot, int head, int position, float* k, const float* v) const;
  void attend(int layer, int slot, int head, int position, float* q, float* y, float* scores) const;

  float* key_cache(int layer, int slot, int head) const {
    return keys_.data() +
           ((size_t(layer) * s_.slots + slot) * s_.kv_heads + head) * capacity_ * s_.head_dim;
  }
  float* value_cache(int layer, int slot, int head) const {
    return values_.data() +
           ((size_t(layer) * s_.slots + slot) * s_.kv_heads + head) * capacity_ * wide_head_;
  }

  const ParleyShape s_;
  const ParleyWeights w_;
  const std::vector<ParleyLayer> layers_;
  const int q_width_, kv_width_, capacity_, wide_head_;
  const Buffer keys_, values_, x_, qkv_, y_, h_;
  const size_t own_size_;
  const Buffer own_;  // each thread's own
  const Buffer scratch_;
  std::vector<std::atomic<int>> taken_;  // of each product of a pass
  std::vector<uint8_t> seen_;
  std::vector<int> order_, kept_;
  std::vector<float> heap_;
  Team team_;
};

// `outputs` sums of R rows over N panels, into to[row][N * kPanel].
template <int R, int N, class W>
__attribute__((noinline)) void panel_sums(const W* panel, int inputs, const float* x, size_t stride, float* to) {
  Floats sums[R][N * kVectors] = {};
  const size_t next = size_t(inputs) * kPanel;
  for (int k = 0; k < inputs; k++) {
    Floats w[N * kVectors];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; j++)
        w[n * kVectors + j] = load(panel + n * next + size_t(k) * kPanel + j * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float factor = x[r * stride + k];
#pragma GCC unroll 16
      for (int j = 0; j < N * kVectors; j++) sums[r][j] += factor * w[j];
    }
  }
  for (int r = 0; r < R; r++)
    for (int j = 0; j < N * kVectors; j++)
      store(to + r * N * kPanel + j * LANES, sums[r][j]);
}

// A share of x (rows, inputs) times the matrix: use(row, panel, sums[N * kPanel], N) with N panels
// (2 in turn, or 1 at the end) from `panel` on. Threads take the next few pairs of panels each time
// (`taken` counts them), so that a slow one has less to do.
template <class W, class Use>
void Network::product(std::atomic<int>& taken, const ParleyMatrix& matrix, int outputs, int inputs,
                      const float* x, int rows, Use use) {
  const int panels = (outputs + kPanel - 1) / kPanel;
  const int few = 2 * std::max(1, panels / 2 / (4 * s_.threads));
  for (int begin; (begin = taken.fetch_add(few, std::memory_order_relaxed)) < panels;)
    share<W>(matrix, begin, std::min(panels, begin + few), inputs, x, rows, use);
}

template <class W, class Use>
inline void Network::share(const ParleyMatrix& matrix, int begin, int end, int inputs,
                           const float* x, int rows, Use use) {
  float sums[MOST_ROWS * 2 * kPanel];
  for (int panel = begin; panel < end; panel += 2) {
    const int together = std::min(2, end - panel);
    const W* from = static_cast<const W*>(matrix.panels) + size_t(panel) * inputs * kPanel;
    for (int row = 0; row < rows;) {
      const float* in = x + size_t(row) * inputs;
      int count = 1;
      const int left = rows - row;
      if (together == 1) {
        panel_sums<1, 1>(from, inputs, in, inputs, sums);
#if MOST_ROWS >= 6
      } else if (left >= 6) {
        count = 6;
        panel_sums<6, 2>(from, inputs, in, inputs, sums);
      } else if (left >= 4) {
        count = 4;
        panel_sums<4, 2>(from, inputs, in, inputs, sums);
#endif
      } else if (left >= 2) {
        count = 2;
        panel_sums<2, 2>(from, inputs, in, inputs, sums);
      } else {
        panel_sums<1, 2>(from, inputs, in, inputs, sums);
      }
      for (int r = 0; r < count; r++) {
        float* of_row = sums + r * together * kPanel;
        if (matrix.scales)
          for (int i = 0; i < together * kPanel; i++) of_row[i] *= matrix.scales[panel * kPanel + i];
        use(row + r, panel, of_row, together);
      }
      row += count;
    }
  }
}

void Network::norm(const float* x, const float* weight, int width, float* to) const {
  Floats squares = {};
  int i = 0;
  for (; i + LANES <= width; i += LANES) {
    const Floats part = load(x + i);
    squares += part * part;
  }
  float total = sum(squares);
  for (; i < width; i++) total += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(total / width + s_.eps);
  for (i = 0; i < width; i++) to[i] = x[i] * factor * weight[i];
}

// Normalises (if there is a weight) and rotates one head's query or key, in place.
void Network::turn(float* x, const float* weight, int position, float scale) const {
  if (weight) norm(x, weight, s_.head_dim, x);
  const int half = s_.head_dim / 2;
  const float* cos = w_.cos + size_t(position) * half;
  const float* sin = w_.sin + size_t(position) * half;
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[half + i];
    x[i] = (a * cos[i] - b * sin[i]) * scale;
    x[half + i] = (b * cos[i] + a * sin[i]) * scale;
  }
}

// Keys lie as [block of 64 positions][dimension][64], values as [position][dimension].
void Network::keep(int layer, int slot, int head, int position, float* k, const float* v) const {
  float* keys = key_cache(layer, slot, head) + size_t(position / kKeys) * s_.head_dim * kKeys +
                position % kKeys;
  for (int i = 0; i < s_.head_dim; i++) keys[size_t(i) * kKeys] = k[i];
  std::copy_n(v, s_.head_dim, value_cache(layer, slot, head) + size_t(position) * wide_head_);
}

// One query head over its own sequence up to `position`.
void Network::attend(int layer, int slot, int head, int position, float* q, float* y,
                     float* scores) const {
  const int group = s_.heads / s_.kv_heads, count = position + 1;
  const float* keys = key_cache(layer, slot, head / group);
  for (int start = 0; start < count; start += kKeys, keys += size_t(s_.head_dim) * kKeys) {
    Floats sums[kKeyVectors] = {};
    for (int i = 0; i < s_.head_dim; i++)
#pragma GCC unroll 16
      for (int j = 0; j < kKeyVectors; j++)
        sums[j] += q[i] * load(keys + size_t(i) * kKeys + j * LANES);
    for (int j = 0; j < kKeyVectors; j++) store(scores + start + j * LANES, sums[j]);
  }
  float largest = scores[0];
  for (int i = 1; i < count; i++) largest = std::max(largest, scores[i]);
  for (int i = count; i % LANES; i++) scores[i] = -INFINITY;
  Floats totals = {};
  for (int i = 0; i < count; i += LANES) {
    const Floats p = exponential(load(scores + i) - largest);
    totals += p;
    store(scores + i, p);
  }
  const float factor = 1.0f / sum(totals);
  const float* values = value_cache(layer, slot, head / group);
  float out[4 * LANES];
  for (int from = 0; from < s_.head_dim; from += 4 * LANES) {
    const int vectors = std::min(4, (wide_head_ - from) / LANES);
    if (vectors == 4) {
      Floats sums[4] = {};
      for (int i = 0; i < count; i++)
#pragma GCC unroll 16
        for (int j = 0; j < 4; j++)
          sums[j] += scores[i] * load(values + size_t(i) * wide_head_ + from + j * LANES);
      for (int j = 0; j < 4; j++) store(out + j * LANES, sums[j] * factor);
    } else {
      for (int j = 0; j < vectors; j++) {
        Floats sums = {};
        for (int i = 0; i < count; i++)
          sums += scores[i] * load(values + size_t(i) * wide_head_ + from + j * LANES);
        store(out + j * LANES, sums * factor);
      }
    }
    std::copy_n(out, std::min(4 * LANES, s_.head_dim - from), y + from);
  }
}

template <class W>
void Network::embed(const int32_t* tokens, int row) {
  const size_t token = tokens[row];
  const ParleyMatrix& from = w_.embedding.panels ? w_.embedding : w_.head;
  const W* weights = static_cast<const W*>(from.panels);
  const bool rows = w_.embedding.panels;
  weights += rows ? token * s_.d_model
                  : token / kPanel * s_.d_model * kPanel + token % kPanel;
  const size_t step = rows ? 1 : kPanel;
  const float scale = from.scales ? from.scales[token] : 1.0f;
  float* x = x_.data() + size_t(row) * s_.d_model;
  for (int i = 0; i < s_.d_model; i++) x[i] = value(weights[i * step]) * scale;
}

template <class W>
void Network::pass(int thread, int rows, const int32_t* slots, const int32_t* tokens,
                   const int32_t* positions, int first, bool by_slot, float* logits) {
  const int d = s_.d_model, hd = s_.head_dim, width = q_width_ + 2 * kv_width_;
  const float scale = 1.0f / std::sqrt(float(hd));
  float *x = x_.data(), *qkv = qkv_.data(), *y = y_.data(), *h = h_.data();
  float* normed = own_.data() + own_size_ * thread;
  float* scores = normed + size_t(s_.rows) * d;
  const auto add_to_x = [=](int row, int panel, const float* sums, int count) {
    float* to = x + size_t(row) * d + panel * kPanel;
    const int most = std::min(count * kPanel, d - panel * kPanel);
    for (int i = 0; i < most; i++) to[i] += sums[i];
  };
  if (thread == 0)
    for (auto& taken : taken_) taken.store(0, std::memory_order_relaxed);
  for (int row = thread; row < rows; row += s_.threads) embed<W>(tokens, row);
  team_.barrier();
  for (int index = 0; index < s_.layers; index++) {
    const ParleyLayer& layer = layers_[index];
    for (int row = 0; row < rows; row++)
      norm(x + size_t(row) * d, layer.attention_norm, d, normed + size_t(row) * d);
    product<W>(taken_[4 * index + 0], layer.qkv, width, d, normed, rows,
               [=](int row, int panel, const float* sums, int count) {
                 std::copy_n(sums, std::min(count * kPanel, width - panel * kPanel),
                             qkv + size_t(row) * width + panel * kPanel);
               });
    team_.barrier();
    for (int task = thread; task < rows * s_.kv_heads; task += s_.threads) {
      const int row = task / s_.kv_heads, head = task % s_.kv_heads;
      float* k = qkv + size_t(row) * width + q_width_ + head * hd;
      turn(k, layer.k_norm, positions[row], 1.0f);
      keep(index, slots[row], head, positions[row], k, k + kv_width_);
    }
    team_.barrier();  // a row may look at the keys of another
    for (int task = thread; task < rows * s_.heads; task += s_.threads) {
      const int row = task / s_.heads, head = task % s_.heads;
      float* q = qkv + size_t(row) * width + head * hd;
      turn(q, layer.q_norm, positions[row], scale);
      attend(index, slots[row], head, positions[row], q, y + size_t(row) * q_width_ + head * hd,
             scores);
    }
    team_.barrier();
    product<W>(taken_[4 * index + 1], layer.out, d, q_width_, y, rows, add_to_x);
    team_.barrier();
    for (int row = 0; row < rows; row++)
      norm(x + size_t(row) * d, layer.feed_forward_norm, d, normed + size_t(row) * d);
    const int padded = (s_.d_ff + kPanel - 1) / kPanel * kPanel;
    product<W>(taken_[4 * index + 2], layer.gate_up, 2 * padded, d, normed, rows,
               [=](int row, int panel, const float* sums, int) {
                 const int from = panel / 2 * kPanel, most = std::min(kPanel, s_.d_ff - from);
                 float out[kPanel];
                 for (int i = 0; i < kPanel; i += LANES) {
                   const Floats gate = load(sums + i), up = load(sums + kPanel + i);
                   store(out + i, gate / (1.0f + exponential(-gate)) * up);
                 }
                 std::copy_n(out, most, h + size_t(row) * s_.d_ff + from);
               });
    team_.barrier();
    product<W>(taken_[4 * index + 3], layer.down, d, s_.d_ff, h, rows, add_to_x);
    team_.barrier();
  }
  if (first >= rows) return;
  for (int row = first; row < rows; row++)
    norm(x + size_t(row) * d, w_.norm, d, normed + size_t(row) * d);
  product<W>(taken_[4 * s_.layers], w_.head, s_.vocab_size, d, normed + size_t(first) * d, rows - first,
             [=](int row, int panel, const float* sums, int count) {
               const size_t place = by_slot ? slots[first + row] : row;
               std::copy_n(sums, std::min(count * kPanel, s_.vocab_size - panel * kPanel),
                           logits + place * s_.vocab_size + panel * kPanel);
             });
}

// SplitMix64, as model.sampling.uniform.
uint64_t scramble(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
double uniform(uint64_t seed, uint64_t position) {
  return double(scramble(scramble(seed) + (position + 1) * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}

// The k-th largest of `count` numbers.
float kth_largest(const float* x, int count, int k, std::vector<float>& heap) {
  heap.assign(x, x + k);
  std::make_heap(heap.begin(), heap.end(), std::greater<float>());
  for (int i = k; i < count; i++) {
    // Most are not among the largest: passed over as many at a time as the machine compares.
    while (i + LANES <= count && !any(load(x + i) > heap.front())) i += LANES;
    for (const int stop = std::min(i + LANES, count); i < stop; i++) {
      if (x[i] <= heap.front()) continue;
      std::pop_heap(heap.begin(), heap.end(), std::greater<float>());
      heap.back() = x[i];
      std::push_heap(heap.begin(), heap.end(), std::greater<float>());
    }
    i--;
  }
  return heap.front();
}

// The next token by the definitions of model.sampling; -1 when logits are not finite.
int Network::choose(int slot, const ParleyReply& reply, const float* logits) {
  const int n = s_.vocab_size;
  float* p = scratch_.data();  // first penalised logits, then what becomes of those kept
  const float* x = logits;
  if (reply.repetition_penalty != 1.0) {
    const float penalty = float(reply.repetition_penalty);
    const uint8_t* seen = seen_.data() + size_t(slot) * n;
    float* penalised = p + n + LANES;
    for (int i = 0; i < n; i++)
      penalised[i] = !seen[i] ? x[i] : x[i] > 0 ? x[i] / penalty : x[i] * penalty;
    x = penalised;
  }
  Floats zeros = {}, most = all(-INFINITY);
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    const Floats part = load(x + i);
    zeros += part * 0.0f;  // infinity and NaN times 0 are NaN
    most = part > most ? part : most;
  }
  float finite = sum(zeros), largest = most[0];
  for (int j = 1; j < LANES; j++) largest = std::max(largest, most[j]);
  for (; i < n; i++) {
    finite += x[i] * 0.0f;
    largest = std::max(largest, x[i]);
  }
  if (finite != 0.0f) return -1;
  if (reply.temperature == 0) return int(std::find(x, x + n, largest) - x);

  kept_.clear();
  if (reply.top_k > 0 && reply.top_k < n) {
    const float least = kth_largest(x, n, reply.top_k, heap_);
    for (i = 0; i < n; i++) {
      while (i + LANES <= n && !any(load(x + i) >= least)) i += LANES;
      for (const int stop = std::min(i + LANES, n); i < stop; i++)
        if (x[i] >= least) kept_.push_back(i);
      i--;
    }
  } else {
    for (i = 0; i < n; i++) kept_.push_back(i);
  }
  const float temperature = std::max(float(reply.temperature), 1.17549435e-38f);
  const int count = int(kept_.size());
  for (i = 0; i < count; i++) p[i] = (x[kept_[i]] - largest) / temperature;
  for (; i % LANES; i++) p[i] = -INFINITY;
  for (i = 0; i < count; i += LANES) store(p + i, exponential(load(p + i)));

  if (reply.top_p < 1) {
    double total = 0;
    for (i = 0; i < count; i++) total += p[i];
    order_.resize(count);
    for (i = 0; i < count; i++) order_[i] = i;
    const auto after = [&](int a, int b) {
      const float u = x[kept_[a]], v = x[kept_[b]];
      return u < v || (u == v && a > b);
    };
    std::make_heap(order_.begin(), order_.end(), after);
    auto end = order_.end();
    double mass = 0;
    while (end != order_.begin() && (mass < reply.top_p * total || end == order_.end())) {
      std::pop_heap(order_.begin(), end, after);
      mass += p[*--end];
    }
    for (auto out = order_.begin(); out != end; ++out) p[*out] = -1.0f;  // outside the nucleus
  }
  const float min_p = float(reply.min_p);
  double total = 0;
  int last = kept_[0];
  for (i = 0; i < count; i++) {
    if (p[i] < min_p || p[i] <= 0) {
      p[i] = 0;
      continue;
    }
    total += p[i];
    last = kept_[i];
  }
  const double target = uniform(reply.seed, reply.position) * total;
  double mass = 0;
  for (i = 0; i < count; i++) {
    mass += p[i];
    if (mass > target) return kept_[i];
  }
  return last;
}

}  // namespace

extern "C" {

void* parley_new(const ParleyShape* shape, const ParleyWeights* weights) {
  try {
    return new Network(*shape, *weights);
  } catch (...) {  // no memory, no thread
    return nullptr;
  }
}

void parley_free(void* network) { delete static_cast<Network*>(network); }

// A digest that no change of one number leaves as it was, at the speed of memory.
uint64_t parley_digest(const void* data, uint64_t bytes) {
  constexpr int kLanes = 16;
  uint64_t lanes[kLanes];
  for (int j = 0; j < kLanes; j++) lanes[j] = j + bytes;
  const auto* from = static_cast<const unsigned char*>(data);
  for (; bytes >= sizeof lanes; bytes -= sizeof lanes, from += sizeof lanes) {
    uint64_t part[kLanes];
    std::memcpy(part, from, sizeof part);
    for (int j = 0; j < kLanes; j++) lanes[j] = (lanes[j] ^ part[j]) * 0x9E3779B97F4A7C15u;
  }
  uint64_t digest = 0;
  for (uint64_t i = 0; i < bytes; i++) digest = scramble(digest ^ from[i]);
  for (const uint64_t lane : lanes) digest = scramble(digest ^ lane);
  return digest;
}

void parley_compute(void* network, int32_t rows, const int32_t* slots, const int32_t* tokens,
                    const int32_t* positions, int32_t first, float* logits) {
  static_cast<Network*>(network)->compute(rows, slots, tokens, positions, first, false, logits);
}

// The tokens of a prompt count as seen from here on.
void parley_see(void* network, int32_t slot, const int32_t* tokens, int32_t count) {
  auto* of = static_cast<Network*>(network);
  of->forget(slot);
  for (int32_t i = 0; i < count; i++) of->see(slot, tokens[i]);
}

// Chooses by logits (vocab_size,) into reply->token, and says whether the logits were finite.
int32_t parley_choose(void* network, int32_t slot, ParleyReply* reply, const float* logits) {
  auto* of = static_cast<Network*>(network);
  const int token = of->choose(slot, *reply, logits);
  if (token < 0) return 0;
  if (reply->repetition_penalty != 1.0) of->see(slot, token);
  reply->token = token;
  reply->position++;
  return 1;
}

// One token more for `rows` slots; replies and logits (slots, vocab_size) are arrays over all slots.
// Returns whether all logits were finite.
int32_t parley_step(void* network, int32_t rows, const int32_t* slots, ParleyReply* replies,
                    int32_t vocab_size, float* logits) {
  static thread_local std::vector<int32_t> tokens, positions;
  tokens.resize(rows);
  positions.resize(rows);
  for (int32_t row = 0; row < rows; row++) {
    tokens[row] = replies[slots[row]].token;
    positions[row] = replies[slots[row]].length++;
  }
  static_cast<Network*>(network)->compute(rows, slots, tokens.data(), positions.data(), 0, true,
                                          logits);
  int32_t finite = 1;
  for (int32_t row = 0; row < rows; row++)
    finite &= parley_choose(network, slots[row], replies + slots[row],
                            logits + size_t(slots[row]) * vocab_size);
  return finite;
}

}  // extern "C"
