// What this machine can do with this instruction set, measured: the limits that a kernel's time is compared with.
#pragma once

#include <time.h>

#include "team.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

inline double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

/// The shortest time, over the rounds, that all threads together take for body(team), after one round to warm up.
/// Each round begins and ends with a barrier. `threads` becomes the number that OpenMP gave.
template <class Body>
double shortest(int& threads, int rounds, const Body& body) {
  double best = 1e300;
  const int asked = threads;
  run_team(asked, Interrupt{}, [&](Team& team) {
    if (team.index == 0) threads = team.size;
    for (int round = 0; round <= rounds; ++round) {
      team.barrier();
      const double start = seconds_now();
      body(team);
      team.barrier();
      const double time = seconds_now() - start;
      if (team.index == 0 && round > 0 && time < best) best = time;
    }
  });
  return best;
}

/// Accumulators that are independent of each other: as many as the kernels' register tile has.
constexpr int kChains = kTileRows * kTileVectors;

/// Keeps the compiler from dropping what led to these values.
template <class V>
FASTRNN_INLINE void use(const V (&values)[kChains]) {
  V sum = values[0];
  for (int i = 1; i < kChains; ++i) sum = add(sum, values[i]);
  asm volatile("" : : "m"(sum));
}

template <class T>
double peak_flops(int threads) {
  using V = Vec<T>;
  constexpr Index kSteps = 4000;
  const double time = shortest(threads, 200, [](Team&) {
    V chain[kChains];
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chain[i] = broadcast<V>(T(i));
    const V factor = broadcast<V>(T(0.5)), summand = broadcast<V>(T(0.25));
    for (Index step = 0; step < kSteps; ++step)
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) chain[i] = fma(chain[i], factor, summand);
    use(chain);
  });
  return 2.0 * kLanes<V> * kChains * double(kSteps) * threads / time;
}

template <class T>
double read_bandwidth(Index bytes, int threads, T* memory) {
  using V = Vec<T>;
  constexpr Index kStride = kChains * kLanes<V>;
  const Index blocks = larger(bytes / Index(sizeof(T)) / kStride, 1);
  const Index passes = larger(20'000'000 / bytes, 1);
  const Index rounds = larger(2'000'000'000 / (passes * bytes), 3);
  bool touched = false;  // by the thread that reads it
  const double time = shortest(threads, int(rounds), [&](Team& team) {
    T* mine = memory + team.index * blocks * kStride;
    if (!touched) {
      for (Index i = 0; i < blocks * kStride; ++i) mine[i] = T(1);
      team.barrier();
      if (team.index == 0) touched = true;
    }
    V sum[kChains];
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sum[i] = zero<V>();
    for (Index pass = 0; pass < passes; ++pass) {
      for (Index block = 0; block < blocks; ++block)
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) sum[i] = add(sum[i], load<V>(mine + block * kStride + i * kLanes<V>));
      asm volatile("" : : : "memory");  // each pass reads anew
    }
    use(sum);
  });
  return double(blocks * kStride * passes) * sizeof(T) * threads / time;
}

inline double barrier_seconds(int threads) {
  constexpr int kBarriers = 1000;
  return shortest(threads, 50,
                  [](Team& team) {
                    for (int i = 0; i < kBarriers; ++i) team.barrier();
                  }) /
         kBarriers;
}

template <class T>
double activation_seconds(int threads) {
  using V = Vec<T>;
  constexpr Index kValues = 1024, kPasses = 20;
  const double time = shortest(threads, 200, [](Team&) {
    alignas(64) T values[kValues];
    for (Index i = 0; i < kValues; ++i) values[i] = T(i - kValues / 2) / T(128);
    for (Index pass = 0; pass < kPasses; ++pass)
      for (Index i = 0; i < kValues; i += kLanes<V>) store(values + i, tanh(load<V>(values + i)));
    asm volatile("" : : "r"(values) : "memory");
  });
  return time / double(kValues * kPasses * threads);
}

template <class T>
double measure_limit(Limit limit, Index bytes, int threads, T* memory) {
  switch (limit) {
    case Limit::flops:
      return peak_flops<T>(threads);
    case Limit::bandwidth:
      return read_bandwidth<T>(bytes, threads, memory);
    case Limit::barrier:
      return barrier_seconds(threads);
    case Limit::activation:
      return activation_seconds<T>(threads);
  }
  __builtin_unreachable();
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
