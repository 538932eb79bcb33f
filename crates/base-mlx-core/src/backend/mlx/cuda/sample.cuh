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
  static constexpr int BINS_PER_E = 8;  // a bin is a factor of e^(1/8) in weight, about its middle
  static constexpr float FIXED = 262144.0f;  // a lane adds at most 2^13 weights of at most e^(1/16) to a bin
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

  static constexpr bool WIDE = PADDED % 8 == 0 && sizeof(T) == 2;  // whether eight logits are one load

  static __device__ __forceinline__ void unpack(const uint4& values, float (&logits)[8]) {
    const Word words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float2 pair = widen_pair<T>(words[n]);
      logits[n * 2] = cleaned(pair.x);
      logits[n * 2 + 1] = cleaned(pair.y);
    }
  }

  // The eight logits from `from` on, −∞ beyond the last.
  __device__ __forceinline__ void read(int from, float (&logits)[8]) const {
    if (listed) {
#pragma unroll
      for (int n = 0; n < 8; n++) logits[n] = from + n < count ? shared.logits[from + n] : below_all();
    } else if (WIDE && from + 8 <= VOCAB) {
      unpack(__ldg(reinterpret_cast<const uint4*>(row + from)), logits);
    } else {
#pragma unroll
      for (int n = 0; n < 8; n++) logits[n] = from + n < VOCAB ? cleaned(widen(row[from + n])) : below_all();
    }
  }

  // Calls visit(segment, from, logits) with the lane's eight of every segment that is the warp's. A row's are asked for
  // some segments ahead.
  template <typename Visit>
  __device__ __forceinline__ void for_segments(Visit visit) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int segment = warp;
    float logits[8];
    if constexpr (WIDE) {
      constexpr int AHEAD = 4;
      constexpr int WHOLE = VOCAB / SEGMENT;
      if (!listed) {
#pragma unroll 1
        for (; segment + (AHEAD - 1) * WARPS < WHOLE; segment += AHEAD * WARPS) {
          uint4 values[AHEAD];
#pragma unroll
          for (int n = 0; n < AHEAD; n++) {
            values[n] = __ldg(reinterpret_cast<const uint4*>(row + (segment + n * WARPS) * SEGMENT + lane * 8));
          }
#pragma unroll
          for (int n = 0; n < AHEAD; n++) {
            unpack(values[n], logits);
            visit(segment + n * WARPS, (segment + n * WARPS) * SEGMENT + lane * 8, logits);
          }
        }
      }
    }
    const int segments = (left() + SEGMENT - 1) / SEGMENT;
#pragma unroll 1
    for (; segment < segments; segment += WARPS) {
      read(segment * SEGMENT + lane * 8, logits);
      visit(segment, segment * SEGMENT + lane * 8, logits);
    }
  }

  __device__ __forceinline__ float distance(float logit) const { return (largest - logit) * per_bin; }
  // The nearest whole number, in the low bits of a float; conversions are as slow as exponentials.
  static __device__ __forceinline__ float in_bits(float distance) { return fminf(distance, float(BINS - 1)) + 8388608.0f; }
  static __device__ __forceinline__ int bin_of(float distance) { return __float_as_int(in_bits(distance)) & (BINS - 1); }
  // Relative to the middle of its bin.
  static __device__ __forceinline__ Word unit_of(float distance) {
    const float relative = distance - (in_bits(distance) - 8388608.0f);
    return __float_as_uint(fmaf(weight_of(relative), FIXED, 8388608.0f)) & 0x7FFFFFu;
  }
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
    for_segments([&](int, int from, const float(&logits)[8]) {
#pragma unroll
      for (int n = 0; n < 8; n++) visit(logits[n], from + n);
    });
  }

  static __device__ __forceinline__ float best_of(const float (&logits)[8]) {
    return fmaxf(fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3])),
                 fmaxf(fmaxf(logits[4], logits[5]), fmaxf(logits[6], logits[7])));
  }

  // The best token, for all threads.
  __device__ __forceinline__ Place best() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Place best{below_all(), NO_TOKEN};
    for_segments([&](int, int from, const float(&logits)[8]) {
      if (best_of(logits) > best.logit) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
          if (logits[n] > best.logit) best = Place{logits[n], Word(from + n)};
        }
      }
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

  // From `shared.bins`, times `factor(bin)`: the first bin at which `before` and the bins so far reach the target; else the
  // last one that has anything. `share` makes the target that share of all.
  template <typename Factor>
  __device__ __forceinline__ void find_bin(double before, double target, bool share, Factor factor) {
    __syncthreads();
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < BINS) {
      double total = 0.0;
#pragma unroll 8
      for (int n = 0; n < 32; n++) total += double(shared.bins[threadIdx.x][(n + lane) % 32]);
      shared.totals[threadIdx.x] = total * factor(threadIdx.x);
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
  // share of the whole sum; else the last with any. Logits below the floor measure 0.
  template <typename Measure>
  __device__ __forceinline__ int find_in_order(double target, bool share, float floor, Measure measure) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int segments = (left() + SEGMENT - 1) / SEGMENT;
    for_segments([&](int segment, int from, const float(&logits)[8]) {
      float sum = 0.0f;
      const float best = best_of(logits);
      if (__any_sync(0xFFFFFFFFu, best > below_all() && best >= floor)) {
#pragma unroll
        for (int n = 0; n < 8; n++) sum += measure(logits[n], from + n);
        sum = sum_of_warp(sum);
      }
      if (lane == 0) shared.segments[segment] = sum;
    });
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
        own += double(measure(logits[n], from + n));
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
          const float mass = measure(logits[n], from + n);
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
    for_segments([&](int segment, int, const float(&logits)[8]) {
      int own = 0;
      const float best = best_of(logits);
      if (__any_sync(0xFFFFFFFFu, best > below_all() && bin_of(distance(best)) <= bin)) {
#pragma unroll
        for (int n = 0; n < 8; n++) own += logits[n] > below_all() && bin_of(distance(logits[n])) <= bin;
        own = __reduce_add_sync(0xFFFFFFFFu, own);
      }
      if (lane == 0) shared.segments[segment] = float(own);
    });
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

  // Whether this thread's bin alone has more than the list can hold.
  __device__ __forceinline__ bool too_many(bool by_weight) const {
    float total = 0.0f;
    for (int n = 0; n < 32; n++) total += float(shared.bins[threadIdx.x][(n + threadIdx.x) % 32]);
    return total > (by_weight ? 1.1f * FIXED : 1.0f) * LISTED;
  }

  // Finds the place at which the best tokens' number (or, of their weights, the share of all) reaches the target.
  __device__ __forceinline__ void limit(bool by_weight, double target) {
    const int lane = threadIdx.x % 32;
    clear_bins();
    for_each([&](float logit, int index) {
      const float at = distance(logit);
      const int bin = bin_of(at);
      if (bin < BINS - 1 && keeps(logit, token_at(index))) {
        const Word unit = by_weight ? unit_of(at) : 1u;
        atomicAdd(&shared.bins[bin][lane], unit);
      }
    });
    find_bin(0.0, target, by_weight, [&](int bin) { return by_weight ? double(weight_of(float(bin))) / FIXED : 1.0; });
    int bin = shared.found;
    double before = shared.found_before;
    if (by_weight) {
      target *= shared.totals[0];
    } else if (shared.totals[1] == 0.0) {
      // The rest is in the last bin.
      before = shared.totals[0];
      bin = BINS - 1;
    }
    // No list if these are more already, each counted as at most 1.
    const int more = __syncthreads_or(threadIdx.x < BINS && threadIdx.x <= unsigned(bin) && too_many(by_weight));
    if (!listed && more == 0) list(bin);

    const double factor = by_weight ? double(weight_of(float(bin))) / FIXED : 1.0;
    // Digits of the distance from the highest key that the bin can have, of which a narrow bin needs few.
    constexpr int LOWEST = Same<T, __nv_bfloat16>::value ? 16 : Same<T, __half>::value ? 8 : 0;
    const float highest = bin == 0 ? largest : largest - (float(bin) - 0.51f) / per_bin;
    const float lowest = bin == BINS - 1 ? -3.402823466e38f : largest - (float(bin) + 0.51f) / per_bin;
    const Word top = key_of(fminf(highest, largest)) >> LOWEST;
    const Word span = top - (key_of(fmaxf(lowest, -3.402823466e38f)) >> LOWEST);
    Word prefix = 0;
#pragma unroll 1
    for (int shift = span < 256 ? 0 : span < 65536 ? 8 : span < 16777216 ? 16 : 24; shift >= 0; shift -= 8) {
      clear_bins();
      for_each([&](float logit, int index) {
        const float at = distance(logit);
        const Word digits = top - (key_of(logit) >> LOWEST);
        if (bin_of(at) == bin && logit > below_all() && (shift == 24 || digits >> (shift + 8) == prefix) &&
            keeps(logit, token_at(index))) {
          atomicAdd(&shared.bins[digits >> shift & 0xFF][lane], by_weight ? unit_of(at) : 1u);
        }
      });
      find_bin(before, target, false, [&](int) { return factor; });
      prefix = prefix << 8 | Word(shared.found);
      before = shared.found_before;
      __syncthreads();
    }
    // Bits that T does not have are 0 in the logit, so 1 in a negative one's key.
    const Word key = (top - prefix) << LOWEST;
    const float logit = logit_of(key >> 31 ? key : key | ((1u << LOWEST) - 1));
    // Of equal logits the first so many.
    double needed = target - before;
    if (by_weight) needed = ceil(needed / double(weight_of(distance(logit))) * (1.0 - 1e-7));
    const int index = find_in_order(fmax(needed, 1.0) - 1.0, false, logit, [&](float other, int) {
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
    if (last.logit == below_all() && min_p <= 0.0f) {
      const float shift = largest * per_bin;
      if (fabsf(shift) < 2000.0f) {  // else the difference would be of numbers too large for it
        return token_at(find_in_order(double(uniform), true, below_all(), [&](float logit, int) {
          return power_of_two((shift - logit * per_bin) * (-LOG2_E / BINS_PER_E));
        }));
      }
    }
    const int index = find_in_order(double(uniform), true, last.logit, [&](float logit, int index) {
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
