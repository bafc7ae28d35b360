// The threads of one call: a barrier that spins, a way to stop early, and how the work is divided among them.
#pragma once

#include <omp.h>

#include "gemm.hpp"
#include "table.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

FASTRNN_INLINE void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// How this thread treats denormals and rounds: the calling thread's mode holds for the whole team, whatever mode a
/// pool thread was started with.
class FloatingPointMode {
 public:
#if defined(__x86_64__)
  static FloatingPointMode current() {
    return FloatingPointMode(_mm_getcsr() & ~0x3fu);
  }  // without the exception flags
  void use() const { _mm_setcsr(bits_); }
#else
  static FloatingPointMode current() {
    std::uint64_t bits;
    asm volatile("mrs %0, fpcr" : "=r"(bits));
    return FloatingPointMode(bits);
  }
  void use() const { asm volatile("msr fpcr, %0" : : "r"(bits_)); }
#endif

  class Scope;

 private:
#if defined(__x86_64__)
  using Bits = unsigned;
#else
  using Bits = std::uint64_t;
#endif
  explicit FloatingPointMode(Bits bits) : bits_(bits) {}
  Bits bits_;
};

class FloatingPointMode::Scope {
 public:
  explicit Scope(const FloatingPointMode& mode) : before_(current()), changed_(before_.bits_ != mode.bits_) {
    if (changed_) mode.use();
  }
  ~Scope() {
    if (changed_) before_.use();
  }

 private:
  const FloatingPointMode before_;
  const bool changed_;
};

/// Shared by the threads of one call.
struct Control {
  alignas(64) int stopped = 0;
  alignas(64) int arrived = 0;
  alignas(64) int round = 0;
};

/// One thread's view of the team.
class Team {
 public:
  Team(Control& control, const Interrupt& interrupt, int index, int size)
      : Team(control, interrupt, index, size, index == 0) {}

  const int index, size;

  /// A team of this thread only, for work that it shares with nobody; it still stops with the others.
  Team alone() const { return Team(control_, interrupt_, 0, 1, asks_); }

  /// Wait for all threads. False: the call was stopped, return at once.
  bool barrier() {
    if (size == 1) return !stopped();
    const int round = __atomic_load_n(&control_.round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&control_.arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&control_.arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&control_.round, round + 1, __ATOMIC_RELEASE);
    } else {
      for (int spins = 0; __atomic_load_n(&control_.round, __ATOMIC_ACQUIRE) == round; ++spins) {
        if (stopped()) return false;
        if (spins < 4096)
          relax();
        else
          sched_yield();  // a virtual processor can be taken away
      }
    }
    return !stopped();
  }

  /// Count work done, in fused multiply-adds (and as many for the call itself as it is likely to take); now and then
  /// the calling thread asks whether to go on. False: return at once.
  bool proceed(Index work) {
    if (asks_ && interrupt_.requested && (budget_ -= work + 4000) < 0) {
      budget_ = kWorkPerInquiry;
      if (interrupt_.requested(interrupt_.context)) __atomic_store_n(&control_.stopped, 1, __ATOMIC_RELAXED);
    }
    return !stopped();
  }

  bool stopped() const { return __atomic_load_n(&control_.stopped, __ATOMIC_RELAXED) != 0; }

 private:
  static constexpr Index kWorkPerInquiry = 400'000'000;  // 10 to 100 ms

  Team(Control& control, const Interrupt& interrupt, int index, int size, bool asks)
      : index(index), size(size), control_(control), interrupt_(interrupt), asks_(asks) {}

  Control& control_;
  const Interrupt& interrupt_;
  const bool asks_;  ///< the calling thread
  Index budget_ = kWorkPerInquiry;
};

/// Run body(team) on each of `threads` threads. True: it ran to its end. One thread means no OpenMP at all.
template <class Body>
bool run_team(int threads, const Interrupt& interrupt, const Body& body) {
  Control control;
  if (threads == 1) {
    Team team(control, interrupt, 0, 1);
    body(team);
  } else {
    const FloatingPointMode mode = FloatingPointMode::current();
#pragma omp parallel num_threads(threads)
    {
      const FloatingPointMode::Scope scope(mode);
      Team team(control, interrupt, omp_get_thread_num(), omp_get_num_threads());
      body(team);
    }
  }
  return !control.stopped;
}

/// Call f(i) for i in [0, n), on `threads` threads; one thread means no OpenMP at all.
template <class F>
void parallel_for(int threads, Index n, const F& f) {
  if (threads == 1) {
    for (Index i = 0; i < n; ++i) f(i);
    return;
  }
  const FloatingPointMode mode = FloatingPointMode::current();
#pragma omp parallel num_threads(threads)
  {
    const FloatingPointMode::Scope scope(mode);
#pragma omp for
    for (Index i = 0; i < n; ++i) f(i);
  }
}

/// How one call is divided. By rows: each thread takes some rows of the batch through all time steps and never waits
/// for another. By units: all threads work on all rows, each on some of the units, and meet in a barrier after every
/// step; each core's share of the weights can then stay in its own cache.
struct Division {
  int threads;
  bool by_units;
};

/// The most rows that all threads work on together.
constexpr Index kMostRowsByUnits = 16 * kTileRows;

/// The cheaper division by a model of the time of one step. `depth`: what one output sums over; `columns`: gates *
/// units, in `blocks` pieces that no two threads share; `exchanged`: what each row's units leave for all threads to
/// read, and `barriers`: per step, when divided by units; `bytes`: of one weight.
inline Division divide(const Processors& with, Index batch, Index time, Index depth, Index columns, Index blocks,
                       Index exchanged, int barriers, Index bytes) {
  // In the unit of the model: a cycle that multiplies one vector. A line that another core has just written takes 50 of
  // them (a SimpleRNN with 256 units and 64 rows: 12 % of its time); weights that no second-level cache holds take one
  // to two for each line beside those of the products (large layers are 7 to 18 % faster by units).
  constexpr double kBarrier = 600, kExchange = 50, kStreaming = 2;
  constexpr Index kLine = 64;
  const int threads = with.threads;
  if (threads == 1 || batch == 0 || time == 0) return {1, false};
  const auto step = [&](Index rows, double share) {
    const double lines = double(depth) * double(columns) * share * double(bytes) / kLine;
    const double beyond = lines * kLine / double(with.cached) - 1;
    // Rows below which loading the weights dominates.
    const Index fewest = beyond < 0 ? 2 : 3;
    const double streaming = beyond < 0 ? 0 : beyond < 1 ? 1 : beyond < kStreaming ? beyond : kStreaming;
    return lines * (double(larger(rows, fewest)) + streaming);
  };
  const Index most = smaller(batch, threads);
  const double alone = step(batch, 1), by_rows = step(ceil_div(batch, most), 1);
  const double exchange = double(batch * exchanged * bytes) / kLine * (1 - 1.0 / threads) * kExchange;
  const double by_units = batch > kMostRowsByUnits ? alone
                                                   : step(batch, double(ceil_div(blocks, threads)) / double(blocks)) +
                                                         barriers * kBarrier + exchange;
  if (alone <= by_units && alone <= by_rows) return {1, false};
  return by_units < by_rows ? Division{threads, true} : Division{static_cast<int>(most), false};
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
