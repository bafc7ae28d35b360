#include "graph_calls.hpp"

#include <algorithm>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

#include "calls.hpp"

namespace fastrnn::graph_calls {

Shape::Shape(std::initializer_list<Index> sizes)
    : Shape(static_cast<Index>(sizes.size()), [&](int axis) { return sizes.begin()[axis]; }) {}

bool Shape::operator==(const Shape& other) const {
  return rank == other.rank && rank <= kMaxRank && std::equal(sizes, sizes + rank, other.sizes);
}

void refuse(std::string_view name, std::string_view what, std::string_view why) {
  throw std::invalid_argument(std::string(name) + ": " + std::string(what) + ' ' + std::string(why));
}

void read_activation(double code, double alpha, double beta, double clip, const Statics& statics, Activation& to) {
  if (!(code >= 0 && code < kActivationKinds)) refuse(statics.name, "activations", "must have codes of activations");
  to = {static_cast<ActivationKind>(static_cast<int>(code)), alpha, beta, clip};
}

void report_errors(const std::function<void()>& f, const std::function<void(int, const char*)>& report) noexcept {
  try {
    f();
  } catch (const Failure& e) {
    report(e.code, e.what());
  } catch (const std::invalid_argument& e) {
    report(kInvalidArgument, e.what());
  } catch (const std::bad_alloc&) {
    report(kResourceExhausted, "fastrnn: no memory for the packed weights and the workspace; use smaller sizes");
  } catch (const std::exception& e) {
    report(kInternal, e.what());
  } catch (...) {
    report(kInternal, "fastrnn: an exception of an unknown type");
  }
}

namespace {

template <class T>
constexpr DType kDType = std::is_same_v<std::remove_const_t<T>, std::uint8_t> ? DType::boolean
                         : std::is_same_v<std::remove_const_t<T>, float>      ? DType::float32
                                                                              : DType::float64;

std::string text(DType dtype) {
  constexpr const char* kNames[] = {"bool", "float32", "float64", "another type"};
  return kNames[static_cast<int>(dtype)];
}
std::string text(const Shape& shape) {
  if (shape.rank > kMaxRank) return std::to_string(shape.rank) + " axes";
  std::string all;
  for (int axis = 0; axis < shape.rank; ++axis) all += (axis ? ", " : "") + std::to_string(shape[axis]);
  return '[' + all + ']';
}

/// The place of a word among words with a space between each two, or -1.
Index place_of(std::string_view word, std::string_view words) {
  for (Index place = 0; !words.empty(); ++place) {
    const std::size_t end = std::min(words.find(' '), words.size());
    if (words.substr(0, end) == word) return place;
    words.remove_prefix(std::min(end + 1, words.size()));
  }
  return -1;
}

/// The operands of a call, by name.
class Operands {
 public:
  Operands(const Statics& statics, const Frame& frame) : statics_(statics), frame_(frame) {}

  bool has(std::string_view name) const { return place_of(name, statics_.operands) >= 0; }
  Array get(std::string_view name) const {
    const Index place = place_of(name, statics_.operands);
    if (place < 0) refuse(statics_.name, name, "must be given");
    if (place >= frame_.operands())
      refuse(statics_.name, name, "must be among the operands, which are fewer than names");
    return frame_.operand(place);
  }
  Array get(std::string_view name, Index rank) const {
    const Array array = get(name);
    if (array.shape.rank != rank)
      refuse(statics_.name, name, "must have " + std::to_string(rank) + " axes, got " + text(array.shape));
    return array;
  }
  /// Null if there is none of this name, or if it is empty.
  template <class T>
  const T* find(std::string_view name, const Shape& shape) const {
    return has(name) ? get<T>(name, shape) : nullptr;
  }
  template <class T>
  const T* get(std::string_view name, const Shape& shape) const {
    const Array array = get(name);
    if (array.dtype != kDType<T> || !(array.shape == shape))
      refuse(statics_.name, name,
             "must be " + text(kDType<T>) + ' ' + text(shape) + " to go with x and the weights, got " +
                 text(array.dtype) + ' ' + text(array.shape));
    return static_cast<const T*>(array.data);
  }

 private:
  const Statics& statics_;
  const Frame& frame_;
};

/// The results of a call, by name.
class Results {
 public:
  Results(const Statics& statics, const Frame& frame) : statics_(statics), frame_(frame) {}

  bool has(std::string_view name) const { return place_of(name, statics_.results) >= 0; }
  /// Null if there is none of this name, or if it is empty. To be called once for each.
  template <class T>
  T* find(std::string_view name, const Shape& shape) const {
    return has(name) ? get<T>(name, shape) : nullptr;
  }
  template <class T>
  T* get(std::string_view name, const Shape& shape) const {
    const Index place = place_of(name, statics_.results);
    if (place < 0) refuse(statics_.name, name, "must be among the results");
    if (place >= frame_.results()) refuse(statics_.name, name, "must be among the results, which are fewer than names");
    return static_cast<T*>(frame_.result(place, kDType<T>, shape));
  }

 private:
  const Statics& statics_;
  const Frame& frame_;
};

constexpr const char* kStates[kMaxStates] = {"h", "c"};

/// What both passes read.
template <class T>
struct Problem {
  Problem(const Statics& statics, const Frame& frame)
      : statics(statics), operands(statics, frame), results(statics, frame), go_backwards(option("go_backwards")) {
    const Cell cell = cell_from_name(std::string(statics.cell));
    traits = cell_traits(cell);
    if (traits.cell_norm || traits.hidden > 1) refuse(statics.name, statics.cell, "is not a cell of graphs");
    const Array x = operands.get("x", 3);
    batch = x.shape[0], time = x.shape[1], inputs = x.shape[2];
    is_vector = cell == Cell::indrnn;
    outputs = operands.get("recurrent_kernel", is_vector ? 1 : 2).shape[0];
    units = traits.projected ? operands.get("projection", 2).shape[0] : outputs;
    columns = traits.gates * units;
    weights.cell = cell;
    weights.inputs = inputs;
    weights.units = units;
    weights.kernel = {operands.get<T>("kernel", {inputs, columns}), columns, 1};
    if (is_vector)
      weights.parameters = {operands.get<T>("recurrent_kernel", {units}), 0, 1};
    else
      weights.recurrent_kernel = {operands.get<T>("recurrent_kernel", {outputs, columns}), columns, 1};
    if (traits.projected) {
      weights.outputs = outputs;
      weights.projection = {operands.get<T>("projection", {units, outputs}), outputs, 1};
    }
    if (has_peephole()) weights.parameters = {operands.get<T>("peephole", {traits.parameters, units}), units, 1};
    if (operands.has("bias")) weights.bias = {operands.get<T>("bias", bias_shape()), columns, 1};
    std::copy_n(statics.activations, kActivations, weights.activations);
  }

  Index width(int state) const { return state == 0 ? outputs : units; }
  bool has_peephole() const { return traits.parameters > 0 && !is_vector; }
  Shape bias_shape() const { return traits.bias_rows == 1 ? Shape{columns} : Shape{traits.bias_rows, columns}; }
  bool option(std::string_view name) const { return place_of(name, statics.options) >= 0; }

  /// The part of a call that forward and backward share; time as it runs.
  template <class Call>
  Call call() const {
    Call call{};
    call.batch = batch;
    call.time = time;
    call.x = operands.get<T>("x", {batch, time, inputs});
    call.x_batch_stride = time * inputs;
    call.x_time_stride = inputs;
    if (go_backwards) calls::start_at_last_step(call.x, call.x_time_stride, time);
    call.mask = mask();
    if (call.mask) {
      call.mask_batch_stride = time;
      call.mask_time_stride = 1;
      if (go_backwards) calls::start_at_last_step(call.mask, call.mask_time_stride, time);
      call.masked_output_is_zero = option("zero_output_for_mask");
    }
    for (int s = 0; s < traits.states; ++s)
      call.initial_state[s] = operands.find<T>(std::string("initial_") + kStates[s], {batch, width(s)});
    call.input_factors = operands.find<T>("dropout_mask", {batch, traits.gates, inputs});
    call.recurrent_factors = operands.find<T>("recurrent_dropout_mask", {batch, traits.gates, outputs});
    for (int s = 0; s < traits.states; ++s) {
      call.zoneout[s] = operands.find<T>(std::string("zoneout_") + kStates[s], {batch, time, width(s)});
      call.zoneout_batch_stride[s] = time * width(s);
      call.zoneout_time_stride[s] = width(s);
      if (go_backwards && call.zoneout[s])
        calls::start_at_last_step(call.zoneout[s], call.zoneout_time_stride[s], time);
    }
    return call;
  }
  Shape tape_shape() const {
    const bool zoneout = operands.has("zoneout_h") || operands.has("zoneout_c");
    return {batch, time, tape_slots(weights, zoneout), units};
  }
  const std::uint8_t* mask() const { return operands.find<std::uint8_t>("mask", {batch, time}); }

  const Statics& statics;
  const Operands operands;
  const Results results;
  const bool go_backwards;
  bool is_vector;
  CellTraits traits;
  Index batch, time, inputs, units, outputs, columns;  ///< outputs: how wide h is
  Weights<T> weights{};
};

/// One thread for the calls that take many. XLA and TensorFlow make their calls from as many threads as there are
/// processors, and OpenMP makes a team for each of them, n * (n - 1) threads in the end: thousands on a large machine,
/// more than a container may be allowed. Of up to four the teams are few, and calling straight from the framework's
/// threads is as fast, or faster where other programs run: OpenMP does not spin when it has more threads than
/// processors.
class LargeCalls {
 public:
  /// f() on that thread, with the caller's modes of rounding and denormals; what it throws is thrown here. Calls from
  /// several threads follow each other.
  static void run(const std::function<void()>& f) {
    static LargeCalls* const calls = new LargeCalls;  // never destroyed: its thread waits until the process ends
    const std::lock_guard<std::mutex> turn(calls->turn_);
    std::unique_lock<std::mutex> lock(calls->mutex_);
    if (!calls->started_) {
      try {
        std::thread([c = calls] { c->work(); }).detach();
      } catch (const std::system_error&) {  // the system has no thread to give
        return f();
      }
      calls->started_ = true;
    }
    std::fegetenv(&calls->modes_);
    calls->call_ = &f;
    calls->changed_.notify_all();
    calls->changed_.wait(lock, [&] { return !calls->call_; });
    if (calls->error_) std::rethrow_exception(std::exchange(calls->error_, nullptr));
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return call_; });
      std::fesetenv(&modes_);
      try {
        (*call_)();
      } catch (...) {
        error_ = std::current_exception();
      }
      call_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable changed_;
  const std::function<void()>* call_ = nullptr;
  std::exception_ptr error_;
  std::fenv_t modes_;
  bool started_ = false;
};

constexpr int kFewThreads = 4;

/// f(threads) with the most threads that the pass may take; 0: the core decides.
template <class T, class F>
void with_threads(const Problem<T>& problem, F&& f) {
  if (num_threads() <= kFewThreads) return f(0);
  // The core wakes its threads for so many fused multiply-adds; packing a weight costs it as much as eight.
  constexpr double kLarge = 5e6, kPacking = 8;
  const double weights = double(problem.inputs + problem.units) * double(problem.columns);
  if (weights * std::max(kPacking, double(problem.batch) * double(problem.time)) >= kLarge)
    LargeCalls::run([&] { f(0); });
  else
    f(1);
}

template <class T>
void run_forward(const Problem<T>& problem, int threads) {
  const Index batch = problem.batch, time = problem.time, outputs = problem.outputs;
  auto call = problem.template call<Forward<T>>();
  call.threads = threads;
  call.y = problem.results.template find<T>("y", {batch, time, outputs});
  call.y_batch_stride = time * outputs;
  call.y_time_stride = outputs;
  for (int s = 0; s < problem.traits.states; ++s)
    call.final_state[s] = problem.results.template find<T>(kStates[s], {batch, problem.width(s)});
  T* const last = problem.results.template find<T>("last", {batch, outputs});
  T* const h = call.final_state[0];
  if (last && !h) call.final_state[0] = last;
  call.tape = problem.results.template find<T>("tape", problem.tape_shape());
  forward(problem.weights, call);
  if (last && h) std::copy_n(h, batch * outputs, last);
  if (last) calls::clear_empty_rows(problem.mask(), batch, time, outputs, last);
}

template <class T>
void run_backward(const Problem<T>& problem, int threads) {
  const Operands& operands = problem.operands;
  const Results& results = problem.results;
  const Index batch = problem.batch, time = problem.time, inputs = problem.inputs, outputs = problem.outputs;
  auto call = problem.template call<Backward<T>>();
  call.threads = threads;
  call.tape = operands.get<T>("tape", problem.tape_shape());
  call.dy = operands.find<T>("dy", {batch, time, outputs});
  call.dy_batch_stride = time * outputs;
  call.dy_time_stride = outputs;
  for (int s = 0; s < problem.traits.states; ++s)
    call.dfinal_state[s] = operands.find<T>(std::string("d") + kStates[s], {batch, problem.width(s)});
  Memory dfinal;
  if (const T* dlast = operands.find<T>("dlast", {batch, outputs})) {
    dfinal = allocate(batch * outputs * static_cast<Index>(sizeof(T)));
    T* const sum = static_cast<T*>(dfinal.get());
    std::copy_n(dlast, batch * outputs, sum);
    calls::clear_empty_rows(problem.mask(), batch, time, outputs, sum);
    for (Index i = 0; call.dfinal_state[0] && i < batch * outputs; ++i) sum[i] += call.dfinal_state[0][i];
    call.dfinal_state[0] = sum;
  }
  call.dx = results.find<T>("dx", {batch, time, inputs});
  call.dx_batch_stride = time * inputs;
  call.dx_time_stride = inputs;
  if (call.dx && problem.go_backwards) calls::start_at_last_step(call.dx, call.dx_time_stride, time);
  call.dkernel = results.get<T>("dkernel", {inputs, problem.columns});
  if (problem.is_vector)
    call.dparameters = results.get<T>("drecurrent_kernel", {outputs});
  else
    call.drecurrent_kernel = results.get<T>("drecurrent_kernel", {outputs, problem.columns});
  if (problem.traits.projected) call.dprojection = results.get<T>("dprojection", {problem.units, outputs});
  if (problem.has_peephole())
    call.dparameters = results.get<T>("dpeephole", {problem.traits.parameters, problem.units});
  call.dbias = results.find<T>("dbias", problem.bias_shape());
  for (int s = 0; s < problem.traits.states; ++s)
    call.dinitial_state[s] = results.find<T>(std::string("dinitial_") + kStates[s], {batch, problem.width(s)});
  backward(problem.weights, call);
}

template <class F>
void run(const Statics& statics, const Frame& frame, F&& f) {
  const auto with = [&](auto zero) {
    const Problem<decltype(zero)> problem(statics, frame);
    with_threads(problem, [&](int threads) { f(problem, threads); });
  };
  if (Operands(statics, frame).get("x", 3).dtype == DType::float32)
    with(0.0f);
  else
    with(0.0);  // another type is refused with the shape
}

}  // namespace

void forward(const Statics& statics, const Frame& frame) {
  run(statics, frame, [](const auto& problem, int threads) { run_forward(problem, threads); });
}
void backward(const Statics& statics, const Frame& frame) {
  run(statics, frame, [](const auto& problem, int threads) { run_backward(problem, threads); });
}

}  // namespace fastrnn::graph_calls
