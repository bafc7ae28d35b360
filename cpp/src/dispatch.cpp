// The public interface: which instruction set, how many threads, memory for a call, and arguments that must hold before
// a kernel runs.
#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "build.hpp"  // made by CMake: FASTRNN_VERSION, FASTRNN_FOR_EACH_ISA
#include "fastrnn/fastrnn.hpp"
#include "table.hpp"

namespace fastrnn {

#define FASTRNN_DECLARE(isa) \
  namespace isa {            \
  const Kernels* kernels();  \
  }
FASTRNN_FOR_EACH_ISA(FASTRNN_DECLARE)
#undef FASTRNN_DECLARE

namespace {

// ---- Instruction sets

struct Isa {
  const char* name;
  const Kernels* (*kernels)();
};
/// Those compiled in, weakest first.
#define FASTRNN_ENTRY(isa) {#isa, isa::kernels},
constexpr Isa kIsas[] = {FASTRNN_FOR_EACH_ISA(FASTRNN_ENTRY)};
#undef FASTRNN_ENTRY

bool runs_here([[maybe_unused]] const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
#endif
  return true;  // what the compiler takes as given
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Isa& isa_by_name(const std::string& name, const char* where) {
  const std::vector<std::string> usable = available_isas();
  if (std::find(usable.begin(), usable.end(), name) == usable.end())
    throw std::invalid_argument(std::string(where) +
                                ": the instruction set must be one that is compiled in and runs on this " +
                                "processor (" + joined(usable) + "), got '" + name + "'");
  return *std::find_if(std::begin(kIsas), std::end(kIsas), [&](const Isa& isa) { return name == isa.name; });
}

std::atomic<const Kernels*> kernels_in_use{nullptr};

const Kernels& kernels() {
  const Kernels* table = kernels_in_use.load(std::memory_order_acquire);
  if (!table) {
    const char* forced = std::getenv("FASTRNN_ISA");
    const Isa& isa = forced && *forced ? isa_by_name(forced, "FASTRNN_ISA") : isa_by_name(available_isas().back(), "");
    table = isa.kernels();
    kernels_in_use.store(table, std::memory_order_release);
  }
  return *table;
}

template <class T>
const KernelTable<T>& table_of(const Kernels& kernels) {
  if constexpr (std::is_same_v<T, float>)
    return kernels.float32;
  else
    return kernels.float64;
}

// ---- Threads

std::atomic<int> threads_set{0};  // 0: OpenMP's number
/// In a child made by fork the OpenMP threads of its parent are gone, but libgomp waits for them for ever.
std::atomic<bool> forked{false};
const int fork_watch = pthread_atfork(nullptr, nullptr, [] { forked = true; });

/// When this thread's last call that could use several threads ended.
thread_local std::chrono::steady_clock::time_point last_large_call{};

/// The threads of one call of so many fused multiply-adds: one where waking the others costs more than it saves.
/// OpenMP's threads stay awake for a few milliseconds after a call; a call then reaches them in 0.5 us, else in 60 (on
/// 2 cores). So a call of middling size gets them if it follows another.
class Threads {
 public:
  explicit Threads(double work, int most = 0) : large_(work >= kWorthWaiting), count_(choose(work, most)) {}
  ~Threads() {
    if (large_) last_large_call = Clock::now();
  }
  operator int() const { return count_; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double kWorthWaiting = 1.5e5, kWorthWaking = 5e6;

  int choose(double work, int most) const {
    if (!large_) return 1;
    const int threads = most > 0 ? std::min(most, num_threads()) : num_threads();
    if (threads == 1 || work >= kWorthWaking) return threads;
    return Clock::now() - last_large_call < std::chrono::milliseconds(1) ? threads : 1;
  }

  const bool large_;
  const int count_;
};

/// What a call works with: of the second-level cache of a processor (1 MiB if the system doesn't say) three quarters,
/// since rows and sums go through it too.
Processors processors(int threads) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long level2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr long level2 = 0;
#endif
  return {threads, (level2 > 0 ? std::int64_t(level2) : std::int64_t(1) << 20) / 4 * 3};
}

template <class Call>
double work_of(const Call& call, std::int64_t inputs, std::int64_t units, int gates) {
  return double(call.batch) * double(call.time) * double(inputs + units) * double(units) * gates;
}

// ---- Sizes

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("fastrnn: ") + what);
}

/// The product fits the address space with room for padding.
void require_size(std::initializer_list<std::int64_t> factors) {
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return;
  std::int64_t product = 64;
  for (std::int64_t f : factors)
    require(!__builtin_mul_overflow(product, f, &product), "the sizes of this call exceed the address space");
}

}  // namespace

CellTraits cell_traits(Cell cell) { return kIsas[0].kernels()->cell_traits(cell); }

Cell cell_from_name(const std::string& name) {
  std::vector<std::string> names;
  for (int i = 0; i < kCells; ++i) {
    const Cell cell = static_cast<Cell>(i);
    names.emplace_back(cell_traits(cell).name);
    if (name == names.back()) return cell;
  }
  throw std::invalid_argument("the cell must be one of " + joined(names) + ", got '" + name + "'");
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names = compiled_isas();
  names.erase(std::remove_if(names.begin(), names.end(), [](const std::string& name) { return !runs_here(name); }),
              names.end());
  return names;
}

const char* isa() { return kernels().isa; }
void set_isa(const std::string& name) { kernels_in_use = isa_by_name(name, "set_isa").kernels(); }

int num_threads() {
  if (forked) return 1;
  const int set = threads_set;
  if (set > 0) return set;
  static const bool named = std::getenv("OMP_NUM_THREADS") != nullptr;  // else no more than there are processors by now
  const int n = named ? omp_get_max_threads() : std::min(omp_get_max_threads(), omp_get_num_procs());
  return std::max(1, std::min(n, omp_get_thread_limit()));
}

void set_num_threads(int n) {
  require(n >= 0, "set_num_threads: the number must be at least 1, or 0 for OpenMP's own");
  threads_set = n;
}

// ---- Weights and calls

template <class T>
struct PackedWeights<T>::Impl {
  const Kernels& kernels;
  Pass pass;
  Cell cell;
  std::int64_t inputs, units, outputs;
  Activation activations[kActivations];
  bool normalized;
  Memory memory;

  PackedView<T> view() const {
    return {cell,
            inputs,
            units,
            outputs,
            static_cast<const T*>(memory.get()),
            {activations[0], activations[1], activations[2]},
            {normalized ? static_cast<const T*>(memory.get()) : nullptr, 0, 0}};
  }
};

/// What all uses of weights ask of them.
template <class T>
static void require_weights(const Weights<T>& w) {
  require(w.units >= 1 && w.inputs >= 0, "units must be at least 1 and inputs at least 0");
  const CellTraits traits = cell_traits(w.cell);
  require(traits.projected ? w.outputs >= 1 && w.outputs <= w.units && w.projection.data
                           : w.outputs == 0 || w.outputs == w.units,
          "outputs must be from 1 to units with a projection, and units or 0 without");
  require(!w.layer_norm.data || w.cell != Cell::indrnn, "indrnn has no layer normalization");
  require(traits.cell_norm == (w.cell_norm.data != nullptr),
          "cell_norm must be given for a cell that has it, no other");
  require_size({w.inputs + traits.hidden * w.units, w.units, traits.gates, sizeof(T)});
}

template <class T>
PackedWeights<T>::PackedWeights(const Weights<T>& w, Pass pass) {
  require_weights(w);
  const CellTraits traits = cell_traits(w.cell);
  const Kernels& chosen = fastrnn::kernels();
  const KernelTable<T>& table = table_of<T>(chosen);
  Memory memory = allocate(table.packed_size(w, pass));
  constexpr double kWorkPerElement = 8;  // copying a weight takes as long as so many fused multiply-adds
  const Threads threads(kWorkPerElement * double(w.inputs + w.units) * double(w.units) * traits.gates);
  table.pack(w, pass, static_cast<T*>(memory.get()), threads);
  impl_.reset(new Impl{chosen,
                       pass,
                       w.cell,
                       w.inputs,
                       w.units,
                       traits.projected ? w.outputs : w.units,
                       {w.activations[0], w.activations[1], w.activations[2]},
                       w.layer_norm.data != nullptr,
                       std::move(memory)});
}
template <class T>
PackedWeights<T>::~PackedWeights() = default;
template <class T>
PackedWeights<T>::PackedWeights(PackedWeights&&) noexcept = default;
template <class T>
PackedWeights<T>& PackedWeights<T>::operator=(PackedWeights&&) noexcept = default;
template <class T>
Cell PackedWeights<T>::cell() const {
  return impl_->cell;
}
template <class T>
std::int64_t PackedWeights<T>::inputs() const {
  return impl_->inputs;
}
template <class T>
std::int64_t PackedWeights<T>::units() const {
  return impl_->units;
}
template <class T>
std::int64_t PackedWeights<T>::outputs() const {
  return impl_->outputs;
}
template <class T>
const char* PackedWeights<T>::isa() const {
  return impl_->kernels.isa;
}

template <class T>
int tape_slots(const Weights<T>& w, bool zoneout) {
  const CellTraits traits = cell_traits(w.cell);
  return table_of<T>(kernels()).tape_slots(w.cell, w.activations) + (zoneout ? traits.states + traits.hidden - 1 : 0) +
         (w.layer_norm.data ? 2 * traits.gates : 0);
}

/// What both passes ask of what they share.
template <class T>
static void require_call(const Kernels& kernels, const PackedView<T>& w, const Call<T>& call, bool keeps_all) {
  require(call.batch >= 0 && call.time >= 0, "batch and time must not be negative");
  require(call.ids ? bool(call.embedding) : call.x || call.batch == 0 || call.time == 0 || w.inputs == 0,
          "x, or with ids the embedding, must not be null");
  const CellTraits traits = cell_traits(w.cell);
  const int slots =
      table_of<T>(kernels).tape_slots(w.cell, w.activations) + traits.states + traits.hidden + 2 * traits.gates;
  require_size({call.batch, w.units, slots, keeps_all ? call.time : 1, sizeof(T)});
}

static std::atomic<std::int64_t> calls[kCells][2];
static void count(Cell cell, Pass pass) {
  calls[static_cast<int>(cell)][static_cast<int>(pass)].fetch_add(1, std::memory_order_relaxed);
}
std::int64_t kernel_calls(Cell cell, Pass pass) {
  return calls[static_cast<int>(cell)][static_cast<int>(pass)].load(std::memory_order_relaxed);
}

namespace {
/// Memory for one call: on the stack where little is enough. (Python threads may have stacks of 32 KiB.)
class Workspace {
 public:
  explicit Workspace(std::int64_t bytes) : memory_(bytes > kSmall ? allocate(bytes) : Memory()) {}
  void* get() { return memory_ ? memory_.get() : small_; }

 private:
  static constexpr std::int64_t kSmall = 1 << 10;
  const Memory memory_;
  alignas(64) char small_[kSmall];
};
}  // namespace

template <class T>
static bool run(const Kernels& kernels, const PackedView<T>& w, const Forward<T>& call) {
  require_call(kernels, w, call, call.tape);
  const KernelTable<T>& table = table_of<T>(kernels);
  const Threads threads(work_of(call, w.inputs, w.units, cell_traits(w.cell).gates), call.threads);
  const Processors with = processors(threads);
  Workspace workspace(table.forward_workspace(w, call, with));
  count(w.cell, Pass::forward);
  return table.forward(w, call, with, workspace.get());
}

template <class T>
static bool run(const Kernels& kernels, const PackedView<T>& w, const Backward<T>& call) {
  require_call(kernels, w, call, true);
  require(call.batch == 0 || call.time == 0 || call.tape, "tape must not be null");
  require(call.dkernel || w.inputs == 0, "dkernel must not be null");
  require(call.drecurrent_kernel || w.cell == Cell::indrnn, "drecurrent_kernel must not be null");
  require(call.dprojection || !cell_traits(w.cell).projected, "dprojection must not be null");
  require(call.dlayer_norm || !w.layer_norm.data, "dlayer_norm must not be null");
  require(call.dcell_norm || !cell_traits(w.cell).cell_norm, "dcell_norm must not be null");
  require(call.dparameters || cell_traits(w.cell).parameters == 0, "dparameters must not be null");
  const KernelTable<T>& table = table_of<T>(kernels);
  const Threads threads(work_of(call, w.inputs, w.units, cell_traits(w.cell).gates), call.threads);
  const Processors with = processors(threads);
  Workspace workspace(table.backward_workspace(w, call, with));
  count(w.cell, Pass::backward);
  return table.backward(w, call, with, workspace.get());
}

template <class T>
bool forward(const PackedWeights<T>& weights, const Forward<T>& call) {
  const auto& w = weights.impl();
  require(w.pass == Pass::forward, "forward takes weights packed for Pass::forward");
  return run(w.kernels, w.view(), call);
}
template <class T>
bool backward(const PackedWeights<T>& weights, const Backward<T>& call) {
  const auto& w = weights.impl();
  require(w.pass == Pass::backward, "backward takes weights packed for Pass::backward");
  return run(w.kernels, w.view(), call);
}

template <class T>
bool reads_in_place(const Weights<T>& w, const Call<T>& call) {
  if (call.batch < 1 || call.time < 1 || call.input_factors || call.recurrent_factors) return false;
  // Reading them here costs more than reading panels, for each row a little, and each step reads the recurrent ones
  // again. Forward and backward passes of one row on two cores take, packed and in place, in us: GRU with 64 inputs and
  // 256 units, 4 steps 94 and 75, 6 steps 118 and 122, 8 steps 144 and 169; LSTM with 256 inputs and units, 8 steps 440
  // and 310.
  constexpr std::int64_t kMostSteps = 5;
  constexpr double kLarge = 1 << 21;
  if (call.batch > kMostDirectRows || call.time > kMostDirectRows || call.batch * call.time > kMostDirectRows)
    return false;
  const double bytes = (double(w.inputs) + double(w.units)) * double(w.units) * cell_traits(w.cell).gates * sizeof(T);
  if (call.time > kMostSteps && bytes < kLarge) return false;
  if (w.layer_norm.data || cell_traits(w.cell).cell_norm) return false;
  const auto contiguous = [](const MatrixView<T>& m) { return !m.data || m.row_stride == 1 || m.column_stride == 1; };
  return contiguous(w.kernel) && contiguous(w.recurrent_kernel) && contiguous(w.projection);
}

/// The weights as the kernels see them where they lie.
template <class T>
static PackedView<T> view_in_place(const Weights<T>& w) {
  require_weights(w);
  return {w.cell,  w.inputs,
          w.units, cell_traits(w.cell).projected ? w.outputs : w.units,
          nullptr, {w.activations[0], w.activations[1], w.activations[2]},
          {},      &w};
}

template <class T>
bool forward(const Weights<T>& weights, const Forward<T>& call) {
  if (!reads_in_place<T>(weights, call)) return forward(PackedWeights<T>(weights, Pass::forward), call);
  return run(kernels(), view_in_place(weights), call);
}
template <class T>
bool backward(const Weights<T>& weights, const Backward<T>& call) {
  if (!reads_in_place<T>(weights, call)) return backward(PackedWeights<T>(weights, Pass::backward), call);
  return run(kernels(), view_in_place(weights), call);
}

template <class T>
void tanh(const T* x, T* y, std::int64_t n) {
  table_of<T>(kernels()).tanh(x, y, n);
}
template <class T>
void sigmoid(const T* x, T* y, std::int64_t n) {
  table_of<T>(kernels()).sigmoid(x, y, n);
}

template <class T>
double measure_limit(Limit limit, int threads, std::int64_t bytes) {
  constexpr int kMostThreads = 1024;
  require(threads >= 1 && threads <= kMostThreads && bytes >= 1,
          "measure_limit: threads must be from 1 to 1024, and bytes at least 1");
  require_size({threads, bytes});
  require(threads == 1 || !forked, "measure_limit: a process forked from one that has loaded fastrnn has one thread");
  constexpr std::int64_t kLeast = 1 << 12;  // one block of vectors
  const Memory memory = allocate(limit == Limit::bandwidth ? threads * std::max(bytes, kLeast) : 0);
  return table_of<T>(kernels()).measure_limit(limit, bytes, threads, static_cast<T*>(memory.get()));
}

#define FASTRNN_INSTANTIATE(T)                                            \
  template class PackedWeights<T>;                                        \
  template int tape_slots<T>(const Weights<T>&, bool);                    \
  template bool forward<T>(const PackedWeights<T>&, const Forward<T>&);   \
  template bool backward<T>(const PackedWeights<T>&, const Backward<T>&); \
  template bool forward<T>(const Weights<T>&, const Forward<T>&);         \
  template bool backward<T>(const Weights<T>&, const Backward<T>&);       \
  template bool reads_in_place<T>(const Weights<T>&, const Call<T>&);     \
  template void tanh<T>(const T*, T*, std::int64_t);                      \
  template void sigmoid<T>(const T*, T*, std::int64_t);                   \
  template double measure_limit<T>(Limit, int, std::int64_t);
FASTRNN_INSTANTIATE(float)
FASTRNN_INSTANTIATE(double)
#undef FASTRNN_INSTANTIATE

const char* version() { return FASTRNN_VERSION; }

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace fastrnn
