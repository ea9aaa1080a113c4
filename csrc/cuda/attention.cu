// Attention forward (online softmax: Milakov, Gimelshein 2018; tiles: Dao, FlashAttention-2, 2023).
//
// A block owns kTile queries of a head and streams keys and values past them. Tiles that none of its
// queries sees are skipped. Products are FMAs (attention_tiles.cuh) for float32 and float64, tensor
// cores (attention_16.cuh, on sm_90a attention_sm90.cuh) for 16-bit numbers that lie in whole packs;
// other 16-bit arrays go through float32 copies. Few queries (decoding): all heads that share keys
// go together, whose rows are read once, as they come, and long caches are cut. Where the tiles of
// queries do not fill the device, the keys are cut too; a last kernel combines the parts in order.
//
// Floor: 2 L S (D + Dv) operations (half of it if causal) at the peak of the units; for few queries
// the bytes of K and V. Not measured on a device yet.
#include "attention_16.cuh"
#include "attention_sm90.cuh"
#include "attention_tiles.cuh"

namespace grebe::cuda {
namespace {

constexpr int kFewQueries = 8;
constexpr int kFewRows = 8;  // of queries and heads together that read the keys once
constexpr int64_t kMostFewKeys = 512, kLeastFewKeys = 128;  // of a part of a long cache
constexpr int64_t kLeastTileKeys = 256;

// ---- tiles of queries ----

// kN: columns of the values that a block has; those of wider ones are shared by several.
template <class S, int kN>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 ? 2 : 1)
    attend_tiles(Problem<S> p, Heads<const S> q, Heads<const S> k, Heads<const S> v, Heads<S> y,
                 S* lse, Cut<S> cut, int tiles, int column_parts, bool resident) {
  constexpr int kLine = Tiling<S>::kWeightLine;
  // Late tiles first: causal ones have most work.
  int number = blockIdx.x;
  const int part = number % cut.count;
  number /= cut.count;
  const int column = number % column_parts * kN;
  number /= column_parts;
  const int first_query = (tiles - 1 - number % tiles) * kTile;
  const int h = number / tiles % p.heads, b = number / tiles / p.heads;
  const int last_query = min(p.queries, first_query + kTile);

  const Modifier<S> modify(p, b, h);
  const Range seen = p.visible(b, first_query, last_query);
  const int begin = max(seen.begin, part * cut.keys) / kTile * kTile;
  const int end = min(seen.end, (part + 1) * cut.keys);

  Shared shared;
  Stages<S> stages(shared, resident);
  S* const weights = shared.take<S>(kTile * kLine);
  const Source<S> rows(q, b, h, p.queries, p.depth);
  const Owned<S> queries(shared, rows, first_query, resident);
  const Source<S> keys(k, b, h / p.group, modify.length, p.depth);
  const Source<S> values(v, b, h / p.group, modify.length, p.value_depth);
  const int chunks = chunks_of<S>(p.depth);

  S out[kShare][kN / kSide] = {}, most[kShare], sum[kShare] = {};
  for (int i = 0; i < kShare; ++i) most[i] = -infinity<S>();
  if (begin < end) stages.load_chunk(keys, begin, 0, queries);
  copy_async_commit();
  for (int key = begin; key < end; key += kTile) {
    S x[kShare][kShare] = {};
    multiply_rows(x, stages, queries, chunks, [&](int chunk) {
      if (chunk < chunks)
        stages.load_chunk(keys, key, chunk, queries);
      else
        stages.template load_part<kN>(values, key, 0, column);
    });
    const bool all_seen = modify.sees_all(first_query, kTile, key, kTile);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int row = thread_y() + kSide * i;
      S high = most[i], total = 0, unused;
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        x[i][j] = modify.score(x[i][j], first_query + row, key + thread_x() + kSide * j, all_seen,
                               unused);
        high = HigherScore<S>()(high, x[i][j]);
      }
      high = warp_combine<kSide>(high, HigherScore<S>());
      const S base = base_of(high), scale = exp2_of(most[i] - base);
      most[i] = high;
#pragma unroll
      for (int j = 0; j < kShare; ++j) {
        x[i][j] = exp2_of(x[i][j] - base);
        total += x[i][j];
      }
      sum[i] = fma(sum[i], scale, total);
#pragma unroll
      for (int c = 0; c < kN / kSide; ++c) out[i][c] *= scale;
      if (p.drops) {
        S factor[4];
        modify.kept_factors(first_query + row, key, thread_x(), factor);
#pragma unroll
        for (int j = 0; j < kShare; ++j) x[i][j] *= factor[j];
      }
#pragma unroll
      for (int j = 0; j < kShare; ++j) weights[row * kLine + thread_x() + kSide * j] = x[i][j];
    }
    multiply_weights<kN>(out, stages, weights, [&](int stage) {
      if (stage < kParts<S, kN>)
        stages.template load_part<kN>(values, key, stage, column);
      else if (key + kTile < end)
        stages.load_chunk(keys, key + kTile, 0, queries);
    });
  }
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int query = first_query + thread_y() + kSide * i;
    const S all = warp_combine<kSide>(sum[i], Plus{});
    if (query >= p.queries) continue;
    const int64_t row = modify.row + query;
    const bool first_thread = thread_x() == 0 && column == 0;
    if (cut.count > 1) {
      const int64_t at = part * p.rows() + row;
      store_row<kN>(out[i], S(1), cut.out + at * p.value_depth, column, p.value_depth,
                    p.value_depth % Tiling<S>::kVector == 0);
      if (first_thread) cut.state[2 * at] = most[i];
      if (first_thread) cut.state[2 * at + 1] = all;
    } else {
      store_row<kN>(out[i], all == 0 ? S(0) : 1 / all, y.at(b, h, query), column, p.value_depth,
                    y.aligned);
      if (first_thread) lse[row] = log2_of_sum(most[i], all);
    }
  }
}

template <int kN, class S>
void run_tiles(const Problem<S>& p, const Heads<const S>& q, const Heads<const S>& k,
               const Heads<const S>& v, const Heads<S>& y, S* lse, const Cut<S>& cut) {
  const int tiles = static_cast<int>(divide_up(p.queries, kTile));
  const int column_parts = p.value_depth > kN ? (p.value_depth + kN - 1) / kN : 1;
  const bool resident = is_resident(tile_bytes<S>(true, true, p.depth));
  const int64_t blocks = p.units() * tiles * column_parts * cut.count;
  launch("attention", attend_tiles<S, kN>, grid_of(blocks), kThreads,
         static_cast<size_t>(tile_bytes<S>(resident, true, p.depth)), p, q, k, v, y, lse, cut,
         tiles, column_parts, resident);
}

// ---- few queries ----

// Up to kPack elements of a row, zeros behind its end.
template <int kCount, class T>
DEVICE Pack<T, kCount> load_pack(const T* row, int at, int size, bool aligned) {
  if (aligned) return *reinterpret_cast<const Pack<T, kCount>*>(row + at);
  Pack<T, kCount> pack;
#pragma unroll
  for (int u = 0; u < kCount; ++u) pack.v[u] = at + u < size ? row[at + u] : narrow<T>(0);
  return pack;
}

// A block has kRows rows (queries of the heads that share keys) and a part of the keys. Eight threads
// share a key's product with all rows, a warp the softmax of a row; then each thread has some columns of
// the output and every n-th key.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads)
    attend_few(Problem<Wide<T>> p, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> y,
               Wide<T>* lse, Cut<Wide<T>> cut, int row_tiles) {
  using S = Wide<T>;
  constexpr int kCount = kPack<T>, kValues = sizeof(T) == 8 ? 2 : 4, kLanes = 8;
  int number = blockIdx.x;
  const int part = number % cut.count;
  number /= cut.count;
  const int first_row = number % row_tiles * kRows, unit = number / row_tiles;
  const int kv_heads = p.heads / p.group, kv_head = unit % kv_heads, b = unit / kv_heads;
  const int rows = p.group * p.queries;
  auto head_of = [&](int r) { return kv_head * p.group + (first_row + r) / p.queries; };
  auto query_of = [&](int r) { return (first_row + r) % p.queries; };
  const Range seen = p.visible(b, 0, p.queries);
  const int begin = max(seen.begin, part * cut.keys);
  const int end = max(begin, min(seen.end, (part + 1) * cut.keys));
  const int width = cut.keys, count = end - begin;
  const int depth = (p.depth + kCount - 1) / kCount * kCount;

  Shared shared;
  S* const queries = shared.take<S>(kRows * depth);
  S* const weights = shared.take<S>(kRows * width);
  S* const state = shared.take<S>(kRows * 2);
  S* const room = shared.take<S>(kThreads * kRows * kValues);
  for (int at = threadIdx.x; at < kRows * depth; at += kThreads) {
    const int r = at / depth, d = at % depth;
    const bool valid = first_row + r < rows && d < p.depth;
    queries[at] = valid ? widen(q.at(b, head_of(r), query_of(r))[d]) : S(0);
  }
  __syncthreads();

  // Scores. Row `lane` gets its scores by the thread of this lane.
  const int lane = threadIdx.x % kLanes;
  const bool has_row = lane < kRows && first_row + lane < rows;
  const Modifier<S> modify(p, b, has_row ? head_of(lane) : 0);
  const int my_query = query_of(lane);
  for (int base = 0; base < count; base += kThreads / kLanes) {
    const int at = base + threadIdx.x / kLanes;
    S dot[kRows] = {};
    if (at < count) {
      const T* row = k.at(b, kv_head, begin + at);
#pragma unroll 4
      for (int d = lane * kCount; d < depth; d += kLanes * kCount) {
        const Pack<T, kCount> x = load_pack<kCount>(row, d, p.depth, k.aligned);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int u = 0; u < kCount; ++u)
            dot[r] = fma(widen(x.v[u]), queries[r * depth + d + u], dot[r]);
      }
    }
    S mine = 0, unused;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const S all = warp_combine<kLanes>(dot[r], Plus{});
      mine = lane == r ? all : mine;
    }
    if (lane < kRows && at < count)
      weights[lane * width + at] =
          has_row ? modify.score(mine, my_query, begin + at, false, unused) : -infinity<S>();
  }
  __syncthreads();

  // Weights.
  for (int r = threadIdx.x / 32; r < kRows; r += kThreads / 32) {
    S* const w = weights + r * width;
    S high = -infinity<S>(), sum = 0;
    for (int at = threadIdx.x % 32; at < count; at += 32) high = HigherScore<S>()(high, w[at]);
    high = warp_combine(high, HigherScore<S>());
    const int64_t row = p.row(b, head_of(r), query_of(r));
    const int64_t stream = row * ((p.keys + 63) / 64 * 64) + begin;
    for (int at = threadIdx.x % 32; at < count; at += 32) {
      const S weight = exp2_of(w[at] - base_of(high));
      sum += weight;
      const bool dropped =
          p.drops && random_word(p.seed, p.offset, static_cast<uint64_t>(stream + at)) < p.least;
      w[at] = dropped ? S(0) : p.drops ? weight * p.kept_factor : weight;
    }
    sum = warp_combine(sum, Plus{});
    if (threadIdx.x % 32 == 0) state[2 * r] = high;
    if (threadIdx.x % 32 == 0) state[2 * r + 1] = sum;
    if (threadIdx.x % 32 != 0 || first_row + r >= rows) continue;
    if (cut.count > 1) {
      S* const to = cut.state + 2 * (part * p.rows() + row);
      to[0] = high;
      to[1] = sum;
    } else {
      lse[row] = log2_of_sum(high, sum);
    }
  }
  __syncthreads();

  // Output.
  const int vectors = (p.value_depth + kValues - 1) / kValues;
  int lanes = 1;
  while (lanes < vectors && lanes < kThreads) lanes *= 2;
  const int groups = kThreads / lanes, group = threadIdx.x / lanes;
  for (int first = 0; first < vectors; first += lanes) {
    const int d = (first + threadIdx.x % lanes) * kValues;
    S out[kRows][kValues] = {};
    if (d < p.value_depth) {
#pragma unroll 4
      for (int at = group; at < count; at += groups) {
        const Pack<T, kValues> x =
            load_pack<kValues>(v.at(b, kv_head, begin + at), d, p.value_depth, v.aligned);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int u = 0; u < kValues; ++u)
            out[r][u] = fma(weights[r * width + at], widen(x.v[u]), out[r][u]);
      }
    }
    __syncthreads();
    S* const here = room + static_cast<int>(threadIdx.x) * kValues;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kValues; ++u) here[r * kThreads * kValues + u] = out[r][u];
    __syncthreads();
    const int line = lanes * kValues;
    for (int at = threadIdx.x; at < kRows * line; at += kThreads) {
      const int r = at / line, e = first * kValues + at % line;
      if (first_row + r >= rows || e >= p.value_depth) continue;
      S all = 0;
      for (int g = 0; g < groups; ++g) all += room[r * kThreads * kValues + g * line + at % line];
      const int h = head_of(r), query = query_of(r);
      const S sum = state[2 * r + 1];
      if (cut.count > 1)
        cut.out[(part * p.rows() + p.row(b, h, query)) * p.value_depth + e] = all;
      else
        y.at(b, h, query)[e] = narrow<T>(sum == 0 ? S(0) : all / sum);
    }
  }
}

// Rows from their parts: a block each.
template <class T>
__global__ void __launch_bounds__(128)
    combine_parts(Problem<Wide<T>> p, Heads<T> y, Wide<T>* lse, Cut<Wide<T>> cut) {
  using S = Wide<T>;
  const int64_t rows = p.rows(), row = blockIdx.x;
  const int query = static_cast<int>(row % p.queries), unit = static_cast<int>(row / p.queries);
  S high = -infinity<S>(), total = 0;
  auto most = [&](int part) { return cut.state[2 * (part * rows + row)]; };
  auto sum = [&](int part) { return cut.state[2 * (part * rows + row) + 1]; };
  for (int part = 0; part < cut.count; ++part)
    if (sum(part) != 0) high = HigherScore<S>()(high, most(part));
  const S base = base_of(high);
  for (int part = 0; part < cut.count; ++part)
    if (sum(part) != 0) total += sum(part) * exp2_of(most(part) - base);
  for (int e = threadIdx.x; e < p.value_depth; e += blockDim.x) {
    S all = 0;
    for (int part = 0; part < cut.count; ++part) {
      const S share = sum(part) == 0 ? S(0) : exp2_of(most(part) - base) / total;
      if (share != 0) all = fma(share, cut.out[(part * rows + row) * p.value_depth + e], all);
    }
    y.at(unit / p.heads, unit % p.heads, query)[e] = narrow<T>(all);
  }
  if (threadIdx.x == 0) lse[row] = log2_of_sum(high, total);
}

template <class T>
void combine(const Problem<Wide<T>>& p, const Heads<T>& y, Wide<T>* lse, const Cut<Wide<T>>& cut) {
  if (cut.count > 1)
    launch("attention", combine_parts<T>, grid_of(p.rows()), 128, 0, p, y, lse, cut);
}

template <class T, int kRows>
void run_few(const Problem<Wide<T>>& p, const Heads<const T>& q, const Heads<const T>& k,
             const Heads<const T>& v, const Heads<T>& y, Wide<T>* lse) {
  const int row_tiles = static_cast<int>(divide_up(p.group * p.queries, kRows));
  const int64_t blocks = p.units() / p.group * row_tiles;
  const Cut<Wide<T>> cut = make_cut(p, blocks, kLeastFewKeys, kMostFewKeys);
  const int64_t depth = divide_up(p.depth, kPack<T>) * kPack<T>;
  const int64_t elements = kRows * (depth + cut.keys + 2 + kThreads * (sizeof(T) == 8 ? 2 : 4)) + 8;
  launch("attention", attend_few<T, kRows>, grid_of(blocks * cut.count), kThreads,
         static_cast<size_t>(elements) * sizeof(Wide<T>) + 64, p, q, k, v, y, lse, cut, row_tiles);
  combine(p, y, lse, cut);
}

// ---- tensor cores ----

template <int kN, class T>
void run_16(const Problem<float>& p, const Heads<const T>& q, const Heads<const T>& k,
            const Heads<const T>& v, const Heads<T>& y, float* lse) {
  const int tiles = static_cast<int>(divide_up(p.queries, kTile));
  const int64_t blocks = p.units() * tiles;
  const Cut<float> cut = make_cut(p, blocks, kLeastTileKeys, kFar);
  const int line = line_16(p.depth), value_line = line_16(p.value_depth);
  const int elements = kTile * line + 2 * kStreamed<kN> * (line + value_line);
  launch("attention", attend_16<T, kN>, grid_of(blocks * cut.count), kThreads16,
         static_cast<size_t>(elements) * sizeof(T), p, q, k, v, y, lse, cut, tiles);
  combine(p, y, lse, cut);
}

// ---- warpgroups ----

template <class Work, class T>
void run_warpgroups(const Problem<float>& p, const View& q, const View& k, const View& v,
                    const Heads<T>& y, float* lse) {
  const int tiles = static_cast<int>(divide_up(p.queries, Work::kQueries));
  const int64_t blocks = p.units() * tiles;
  const Cut<float> cut = make_cut(p, blocks, kLeastTileKeys, kFar);
  launch("attention", attend_warpgroups<Work>, grid_of(blocks * cut.count), Work::kBlock,
         Work::kSharedBytes, map_of_heads<T>(q, Work::kQueries), map_of_heads<T>(k, Work::kKeys),
         map_of_heads<T>(v, Work::kKeys), p, y, lse, cut, tiles);
  combine(p, y, lse, cut);
}
template <class T>
bool try_warpgroups(const Problem<float>& p, const View& q, const View& k, const View& v,
                    const Heads<T>& y, float* lse) {
  const int widest = p.depth > p.value_depth ? p.depth : p.value_depth;
  if (compute_capability() != 90 || widest > 128 || p.lengths) return false;
  if (p.queries < 64 || p.keys < 64) return false;
  if (!is_mappable(q) || !is_mappable(k) || !is_mappable(v)) return false;
  const bool plain = p.linear && !p.drops;
  const auto run = widest <= 64 ? plain ? run_warpgroups<WarpgroupAttention<T, 64, true>, T>
                                        : run_warpgroups<WarpgroupAttention<T, 64, false>, T>
                   : plain      ? run_warpgroups<WarpgroupAttention<T, 128, true>, T>
                                : run_warpgroups<WarpgroupAttention<T, 128, false>, T>;
  run(p, q, k, v, y, lse);
  return true;
}

// ---- which of them ----

template <class S>
void attend(const Problem<S>& p, const Heads<const S>& q, const Heads<const S>& k,
            const Heads<const S>& v, const Heads<S>& y, S* lse) {
  const bool wide = sizeof(S) == 4 && p.value_depth > 64;
  const int64_t columns = divide_up(p.value_depth, wide ? 128 : 64);
  const int64_t blocks = p.units() * divide_up(p.queries, kTile) * columns;
  const Cut<S> cut = make_cut(p, blocks, kLeastTileKeys, kFar);
  if constexpr (sizeof(S) == 4) {
    if (wide)
      run_tiles<128>(p, q, k, v, y, lse, cut);
    else
      run_tiles<64>(p, q, k, v, y, lse, cut);
  } else {
    run_tiles<64>(p, q, k, v, y, lse, cut);
  }
  combine(p, y, lse, cut);
}

}  // namespace

bool attention(In q, In k, In v, OptIn mask, OptIn lengths, OptIn slopes, Out y, Out lse,
               double scale, double softcap, int64_t first, int64_t end, int64_t shift,
               double dropout, int64_t seed, int64_t offset) {
  if (numel(lse) == 0) return true;
  with_float("attention", q.dtype, [&](auto zero) {
    using T = decltype(zero);
    using S = Wide<T>;
    const Problem<S> p = problem<S>(q, k, v, mask, lengths, slopes, scale, softcap, first, end,
                                    shift, dropout, seed, offset);
    S* const sums = data<S>(lse);
    const Heads<const T> rows = heads_of<const T>(q), keys = heads_of<const T>(k);
    const Heads<const T> values = heads_of<const T>(v);
    const Heads<T> out = heads_of<T>(y);
    [[maybe_unused]] const bool aligned =
        rows.aligned && keys.aligned && values.aligned && out.aligned;
    if (p.queries <= kFewQueries && p.depth <= 1024) {
      const auto run = p.group * p.queries == 1 ? run_few<T, 1> : run_few<T, kFewRows>;
      run(p, rows, keys, values, out, sums);
    } else if constexpr (std::is_same_v<T, S>) {
      attend(p, rows, keys, values, out, sums);
    } else if (takes_16(q.dtype, p.depth, p.value_depth, aligned)) {
      if (try_warpgroups(p, q, k, v, out, sums)) return;
      const int widest = p.depth > p.value_depth ? p.depth : p.value_depth;
      const auto run = widest <= 64    ? run_16<64, T>
                       : widest <= 128 ? run_16<128, T>
                                       : run_16<256, T>;
      run(p, rows, keys, values, out, sums);
    } else {
      const Heads<float> wide = heads_in_workspace<float>(y);
      attend(p, widened<T>(q), widened<T>(k), widened<T>(v), wide, sums);
      convert<float, T>(y, constant(wide), out);
    }
  });
  return true;
}

}  // namespace grebe::cuda
