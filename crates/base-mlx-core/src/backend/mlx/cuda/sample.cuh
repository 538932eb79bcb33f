// From a row of logits to a token, as `sample::chain` does it after penalties and masks: top_k, top_p and min_p each keep
// what is not after one place in the order (larger logit, then lower id), and a number in [0, 1) chooses among the rest in
// the order of their ids. NaN counts as −∞.
//
// No sort: a filter's place is found in a histogram of distances from the largest logit, then digit by digit in the one
// bin that contains it. As soon as few enough tokens are left, they are listed in shared memory. Sums are counts of fixed
// point numbers, so a result does not depend on the order in which threads run.

namespace base_mlx {

// logits [rows, PADDED] of T, of which VOCAB count; for each row temperature (0 is greedy), top_p (1 keeps all), min_p (0
// keeps all), uniform in [0, 1), top_k (0 keeps all). out [rows]: a token, or NO_TOKEN if no logit is above −∞.
//
// Grid: x rows; 1024 threads.
template <typename T, int VOCAB, int PADDED>
struct Sample {
  static constexpr int THREADS = 1024, WARPS = 32;
  static constexpr int SEGMENT = 256;  // tokens that a warp looks at together
  static constexpr int SEGMENTS = (VOCAB + SEGMENT - 1) / SEGMENT;
  static constexpr int LISTED = 1024;  // most tokens in the list
  static constexpr int BINS = 256;
  static constexpr int BINS_PER_E = 8;  // a bin is a factor of e^(1/8) in weight
  static constexpr float FIXED = 524288.0f;  // a lane adds at most 2^13 weights of at most 1 to a bin
  static constexpr Word NO_TOKEN = 0xFFFFFFFFu;
  static_assert((VOCAB + WARPS - 1) / WARPS <= 8192 + 255, "a bin could overflow");

  struct Shared {
    Word bins[BINS][32];  // one for each lane, so that no two lanes of a warp meet in a bank
    double totals[BINS];
    float segments[SEGMENTS > LISTED / SEGMENT ? SEGMENTS : LISTED / SEGMENT];
    float logits[LISTED];
    Word tokens[LISTED];
    float warp_logits[WARPS];
    Word warp_tokens[WARPS];
    double found_before;
    int found;
    int found_index;
    int listed;
  };

  struct Place {
    float logit;
    Word token;
  };

  const T* row;
  Shared& shared;
  float largest;
  float per_bin;    // distance from the largest logit, in bins, is (largest - logit) * per_bin
  bool listed;      // what is left is in the list
  int count;        // of the list
  Place last;       // what comes after it is removed

  static __device__ __forceinline__ float below_all() { return __int_as_float(0xFF800000); }

  __device__ __forceinline__ int left() const { return listed ? count : VOCAB; }
  __device__ __forceinline__ Word token_at(int index) const { return listed ? shared.tokens[index] : Word(index); }

  static __device__ __forceinline__ float cleaned(float logit) {
    // Adding 0 makes -0 and 0 one key.
    return fminf(fmaxf(logit, below_all()), 3.402823466e38f) + 0.0f;
  }

  // The eight logits from `from` on, −∞ beyond the last.
  __device__ __forceinline__ void read(int from, float (&logits)[8]) const {
    if (listed) {
#pragma unroll
      for (int n = 0; n < 8; n++) logits[n] = from + n < count ? shared.logits[from + n] : below_all();
    } else if (PADDED % 8 == 0 && from + 8 <= VOCAB) {
      if constexpr (sizeof(T) == 2) {
        const uint4 values = __ldg(reinterpret_cast<const uint4*>(row + from));
        const Word words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const float2 pair = widen_pair<T>(words[n]);
          logits[n * 2] = cleaned(pair.x);
          logits[n * 2 + 1] = cleaned(pair.y);
        }
      } else {
#pragma unroll
        for (int n = 0; n < 8; n++) logits[n] = cleaned(widen(row[from + n]));
      }
    } else {
#pragma unroll
      for (int n = 0; n < 8; n++) logits[n] = from + n < VOCAB ? cleaned(widen(row[from + n])) : below_all();
    }
  }

  __device__ __forceinline__ float distance(float logit) const { return (largest - logit) * per_bin; }
  static __device__ __forceinline__ int bin_of(float distance) { return min(int(distance), BINS - 1); }
  // e^(-distance / 8).
  static __device__ __forceinline__ float weight_of(float distance) {
    return power_of_two(distance * (-LOG2_E / BINS_PER_E));
  }
  __device__ __forceinline__ bool keeps(float logit, Word token) const {
    return logit > last.logit || (logit == last.logit && token <= last.token);
  }
  static __device__ __forceinline__ Word key_of(float logit) {
    const Word bits = __float_as_uint(logit);
    return bits ^ (Word(int(bits) >> 31) | 0x80000000u);
  }
  static __device__ __forceinline__ float logit_of(Word key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xFFFFFFFFu));
  }

  // Calls visit(logit, index) for all that is left, in no order.
  template <typename Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for (int from = threadIdx.x * 8; from < left(); from += THREADS * 8) {
      float logits[8];
      read(from, logits);
#pragma unroll
      for (int n = 0; n < 8; n++) visit(logits[n], from + n);
    }
  }

  // The best token, for all threads.
  __device__ __forceinline__ Place best() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Place best{below_all(), NO_TOKEN};
    for_each([&](float logit, int index) {
      if (logit > best.logit) best = Place{logit, Word(index)};
    });
    reduce(best);
    if (lane == 0) {
      shared.warp_logits[warp] = best.logit;
      shared.warp_tokens[warp] = best.token;
    }
    __syncthreads();
    best = Place{shared.warp_logits[lane], shared.warp_tokens[lane]};
    reduce(best);
    return best;
  }

  static __device__ __forceinline__ void reduce(Place& best) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const float logit = __shfl_xor_sync(0xFFFFFFFFu, best.logit, distance);
      const Word token = __shfl_xor_sync(0xFFFFFFFFu, best.token, distance);
      if (logit > best.logit || (logit == best.logit && token < best.token)) best = Place{logit, token};
    }
  }

  __device__ __forceinline__ void clear_bins() {
    for (int n = threadIdx.x; n < BINS * 32; n += THREADS) (&shared.bins[0][0])[n] = 0;
    __syncthreads();
  }

  // From `shared.bins`, times `factor(bin)`: the first bin, counted from the first or the last, at which `before` and the
  // bins so far reach the target; else the last one that has anything. `share` makes the target that share of all.
  template <typename Factor>
  __device__ __forceinline__ void find_bin(bool from_last, double before, double target, bool share, Factor factor) {
    __syncthreads();
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < BINS) {
      double total = 0.0;
#pragma unroll 8
      for (int n = 0; n < 32; n++) total += double(shared.bins[threadIdx.x][(n + lane) % 32]);
      shared.totals[from_last ? BINS - 1 - threadIdx.x : threadIdx.x] = total * factor(threadIdx.x);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      constexpr int EACH = BINS / 32;
      double own = 0.0;
      for (int n = 0; n < EACH; n++) own += shared.totals[lane * EACH + n];
      double so_far = sum_before(own);
      const double all = __shfl_sync(0xFFFFFFFFu, so_far + own, 31);
      if (share) target *= all;
      const bool reaches = before + so_far + own >= target && own > 0.0;
      const Word lanes = __ballot_sync(0xFFFFFFFFu, reaches), filled = __ballot_sync(0xFFFFFFFFu, own > 0.0);
      const int chosen = lanes != 0 ? __ffs(lanes) - 1 : 31 - __clz(filled);
      if (filled == 0 && lane == 0) {
        shared.found = BINS - 1;
        shared.found_before = before;
      } else if (lane == chosen) {
        so_far += before;
        for (int n = 0; n < EACH; n++) {
          const double total = shared.totals[lane * EACH + n];
          if (total <= 0.0) continue;
          shared.found = lane * EACH + n;
          shared.found_before = so_far;
          so_far += total;
          if (so_far >= target) break;
        }
      }
      if (lane == 0) {
        shared.totals[0] = all;
        shared.totals[1] = lanes != 0 ? 1.0 : 0.0;
      }
    }
    __syncthreads();
  }

  // Of what is in lower lanes.
  static __device__ __forceinline__ double sum_before(double own) {
    const int lane = threadIdx.x % 32;
    double sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const double other = __shfl_up_sync(0xFFFFFFFFu, sum, distance);
      if (lane >= distance) sum += other;
    }
    sum = __shfl_up_sync(0xFFFFFFFFu, sum, 1);
    return lane == 0 ? 0.0 : sum;
  }

  // The first of what is left, in the order of ids, at which the sum of measure(logit, token) exceeds the target, or that
  // share of the whole sum; else the last with any.
  template <typename Measure>
  __device__ __forceinline__ int find_in_order(double target, bool share, Measure measure) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int segments = (left() + SEGMENT - 1) / SEGMENT;
    for (int segment = warp; segment < segments; segment += WARPS) {
      const int from = segment * SEGMENT + lane * 8;
      float logits[8], sum = 0.0f;
      read(from, logits);
#pragma unroll
      for (int n = 0; n < 8; n++) {
        if (logits[n] > below_all()) sum += measure(logits[n], from + n);
      }
      sum = sum_of_warp(sum);
      if (lane == 0) shared.segments[segment] = sum;
    }
    __syncthreads();
    if (warp == 0) {
      const int each = (segments + 31) / 32;
      double own = 0.0;
      for (int n = lane * each; n < min(segments, lane * each + each); n++) own += double(shared.segments[n]);
      double so_far = sum_before(own);
      const double all = __shfl_sync(0xFFFFFFFFu, so_far + own, 31);
      if (share) target *= all;
      Word lanes = __ballot_sync(0xFFFFFFFFu, so_far + own > target && own > 0.0);
      Word filled = __ballot_sync(0xFFFFFFFFu, own > 0.0);
      int chosen = lanes != 0 ? __ffs(lanes) - 1 : filled != 0 ? 31 - __clz(filled) : 0;
      int segment = 0;
      double before = 0.0;
      for (int n = lane * each; n < min(segments, lane * each + each); n++) {
        const double mass = double(shared.segments[n]);
        if (mass <= 0.0) continue;
        segment = n;
        before = so_far;
        so_far += mass;
        if (so_far > target) break;
      }
      segment = __shfl_sync(0xFFFFFFFFu, segment, chosen);
      before = __shfl_sync(0xFFFFFFFFu, before, chosen);

      const int from = segment * SEGMENT + lane * 8;
      float logits[8];
      read(from, logits);
      own = 0.0;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        if (logits[n] > below_all()) own += double(measure(logits[n], from + n));
      }
      so_far = before + sum_before(own);
      lanes = __ballot_sync(0xFFFFFFFFu, so_far + own > target && own > 0.0);
      filled = __ballot_sync(0xFFFFFFFFu, own > 0.0);
      chosen = lanes != 0 ? __ffs(lanes) - 1 : filled != 0 ? 31 - __clz(filled) : 0;
      if (lane == chosen) {
        int index = from;
        bool done = false;
#pragma unroll
        for (int n = 0; n < 8; n++) {
          const float mass = logits[n] > below_all() ? measure(logits[n], from + n) : 0.0f;
          if (!done && mass > 0.0f) {
            index = from + n;
            so_far += double(mass);
            done = so_far > target;
          }
        }
        shared.found_index = index;
      }
    }
    __syncthreads();
    const int index = shared.found_index;
    __syncthreads();
    return index;
  }

  // Lists what is left in bins up to `bin`, if it fits, in the order of ids.
  __device__ __forceinline__ void list(int bin) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int segment = warp; segment < SEGMENTS; segment += WARPS) {
      float logits[8];
      read(segment * SEGMENT + lane * 8, logits);
      int own = 0;
#pragma unroll
      for (int n = 0; n < 8; n++) own += logits[n] > below_all() && bin_of(distance(logits[n])) <= bin;
      own = __reduce_add_sync(0xFFFFFFFFu, own);
      if (lane == 0) shared.segments[segment] = float(own);
    }
    __syncthreads();
    if (warp == 0) {
      constexpr int EACH = (SEGMENTS + 31) / 32;
      double own = 0.0;
      for (int n = lane * EACH; n < min(SEGMENTS, lane * EACH + EACH); n++) own += double(shared.segments[n]);
      double so_far = sum_before(own);
      if (lane == 31) shared.listed = int(so_far + own);
      // Where a segment's tokens begin in the list; negative for none.
      for (int n = lane * EACH; n < min(SEGMENTS, lane * EACH + EACH); n++) {
        const float size = shared.segments[n];
        shared.segments[n] = size > 0.0f ? float(so_far) : -1.0f;
        so_far += double(size);
      }
    }
    __syncthreads();
    const int size = shared.listed;
    if (size > LISTED) return;
    for (int segment = warp; segment < SEGMENTS; segment += WARPS) {
      int to = int(shared.segments[segment]);
      if (to < 0) continue;
      const int from = segment * SEGMENT + lane * 8;
      float logits[8];
      read(from, logits);
      Word own = 0;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        if (logits[n] > below_all() && bin_of(distance(logits[n])) <= bin) own |= 1u << n;
      }
      int ahead = __popc(own);
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, ahead, distance);
        if (lane >= distance) ahead += other;
      }
      to += ahead - __popc(own);
#pragma unroll
      for (int n = 0; n < 8; n++) {
        if (own >> n & 1) {
          shared.logits[to] = logits[n];
          shared.tokens[to] = Word(from + n);
          to++;
        }
      }
    }
    __syncthreads();
    listed = true;
    count = size;
  }

  // Finds the place at which the best tokens' number (or, of their weights, the share of all) reaches the target.
  __device__ __forceinline__ void limit(bool by_weight, double target) {
    const int lane = threadIdx.x % 32;
    clear_bins();
    for_each([&](float logit, int index) {
      const float at = distance(logit);
      const int bin = bin_of(at);
      if (bin < BINS - 1 && keeps(logit, token_at(index))) {
        const Word unit = by_weight ? Word(weight_of(at - float(bin)) * FIXED + 0.5f) : 1u;
        atomicAdd(&shared.bins[bin][lane], unit);
      }
    });
    find_bin(false, 0.0, target, by_weight, [&](int bin) { return by_weight ? double(weight_of(float(bin))) / FIXED : 1.0; });
    int bin = shared.found;
    double before = shared.found_before;
    if (by_weight) {
      target *= shared.totals[0];
    } else if (shared.totals[1] == 0.0) {
      // The rest is in the last bin.
      before = shared.totals[0];
      bin = BINS - 1;
    }
    __syncthreads();
    if (!listed) list(bin);

    const double factor = by_weight ? double(weight_of(float(bin))) / FIXED : 1.0;
    constexpr int LOWEST = Same<T, __nv_bfloat16>::value ? 16 : Same<T, __half>::value ? 8 : 0;
    Word prefix = 0;
#pragma unroll 1
    for (int shift = 24; shift >= LOWEST; shift -= 8) {
      clear_bins();
      for_each([&](float logit, int index) {
        const float at = distance(logit);
        const Word key = key_of(logit);
        if (logit > below_all() && bin_of(at) == bin && (shift == 24 || key >> (shift + 8) == prefix) &&
            keeps(logit, token_at(index))) {
          const Word unit = by_weight ? Word(weight_of(at - float(bin)) * FIXED + 0.5f) : 1u;
          atomicAdd(&shared.bins[key >> shift & 0xFF][lane], unit);
        }
      });
      find_bin(true, before, target, false, [&](int) { return factor; });
      prefix = prefix << 8 | Word(BINS - 1 - shared.found);
      before = shared.found_before;
      __syncthreads();
    }
    const float logit = logit_of(prefix << LOWEST);
    // Of equal logits the first so many.
    double needed = target - before;
    if (by_weight) needed = ceil(needed / double(weight_of(distance(logit))) * (1.0 - 1e-7));
    const int index = find_in_order(fmax(needed, 1.0) - 1.0, false, [&](float other, int) {
      return other == logit ? 1.0f : 0.0f;
    });
    const Word token = token_at(index);
    if (keeps(logit, token)) last = Place{logit, token};
  }

  __device__ __forceinline__ Word choose(float temperature, float top_p, float min_p, float uniform, Word top_k) {
    const Place best_place = best();
    if (best_place.token == NO_TOKEN || temperature <= 0.0f) return best_place.token;
    largest = best_place.logit;
    per_bin = fminf(1.0f / temperature, 1e30f) * float(BINS_PER_E);
    if (top_k > 0 && top_k < Word(VOCAB)) limit(false, double(top_k));
    if (top_p < 1.0f) limit(true, double(top_p));
    const int index = find_in_order(double(uniform), true, [&](float logit, int index) {
      const float weight = weight_of(distance(logit));
      return weight >= min_p && keeps(logit, token_at(index)) ? weight : 0.0f;
    });
    return token_at(index);
  }
};

template <typename T, int VOCAB, int PADDED>
__device__ __forceinline__ void sample(const T* logits, const float* temperature, const float* top_p, const float* min_p,
                                       const float* uniform, const Word* top_k, Word* out) {
  using Plan = Sample<T, VOCAB, PADDED>;
  __shared__ typename Plan::Shared shared;
  const int row = blockIdx.x;
  Plan plan{logits + size_t(row) * PADDED, shared, 0.0f, 0.0f, false, 0, {Plan::below_all(), Plan::NO_TOKEN}};
  const Word token = plan.choose(temperature[row], top_p[row], min_p[row], uniform[row], top_k[row]);
  if (threadIdx.x == 0) out[row] = token;
}

}  // namespace base_mlx
