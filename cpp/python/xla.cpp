// The way into the core from a program that XLA compiled: handlers for the forward and the backward pass, registered by
// fastrnn.jax. They run on XLA's threads, without the GIL and without Python.
//
// A handler's attributes: `cell`, its name; `activations`, an array of doubles, (code, alpha, beta, clip) for each of
// the three; `operands` and `results`, names in the order of the buffers, with spaces between; `options`, names of what
// is true. Names are those of fastrnn.functional, and
//
//     initial_h initial_c    the initial states [B, H]                    h c     the final ones
//     zoneout_h zoneout_c    the zoneout masks [B, T, H] of the states
//     last                   the last output [B, H]                       y       all of them [B, T, H]
//     tape                   [B, T, slots, H]                             d...    the gradient of what follows the d
//
// An operand or result that is not named is none. What fastrnn.jax passes is checked there, with names and advice; here
// only so that no call reads or writes beside a buffer.
#include "xla.hpp"

#include <algorithm>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "calls.hpp"
#include "fastrnn/fastrnn.hpp"

namespace fastrnn::xla {
namespace {

using calls::Index;
using Shape = std::initializer_list<Index>;

template <class T>
constexpr xla_ffi::DataType kDataType = std::is_same_v<T, const std::uint8_t> ? xla_ffi::kPred
                                        : std::is_same_v<T, const float>      ? xla_ffi::kFloat32
                                                                              : xla_ffi::kFloat64;

xla_ffi::Error* error(const xla_ffi::Api& api, xla_ffi::ErrorCode code, const char* message) {
  xla_ffi::ErrorArguments arguments{sizeof(xla_ffi::ErrorArguments), nullptr, message, code};
  return api.error_create(&arguments);
}

[[noreturn]] void refuse(std::string_view what, const char* why) {
  throw std::invalid_argument("fastrnn's XLA handler: " + std::string(what) + ' ' + why);
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

class Attributes {
 public:
  explicit Attributes(const xla_ffi::Attributes& attributes) : attributes_(attributes) {
    if (!holds(attributes)) refuse("the attributes", "are laid out in a way that this version does not know");
  }
  std::string_view words(std::string_view name) const { return view(find<xla_ffi::ByteSpan>(name, xla_ffi::kString)); }

  void read_activations(Activation (&to)[kActivations]) const {
    const auto& array = find<xla_ffi::Array>("activations", xla_ffi::kArray);
    if (array.dtype != xla_ffi::kFloat64 || array.size != 4 * kActivations) refuse("activations", "must be 12 doubles");
    const double* value = static_cast<const double*>(array.data);
    for (Activation& activation : to) {
      if (!(value[0] >= 0 && value[0] < kActivationKinds)) refuse("activations", "must have codes of activations");
      activation = {static_cast<ActivationKind>(static_cast<int>(value[0])), value[1], value[2], value[3]};
      value += 4;
    }
  }

 private:
  static std::string_view view(const xla_ffi::ByteSpan& span) { return {span.data, span.size}; }
  template <class A>
  const A& find(std::string_view name, xla_ffi::AttributeType type) const {
    for (Index i = 0; i < attributes_.size; ++i)
      if (view(*attributes_.names[i]) == name && attributes_.types[i] == type)
        return *static_cast<const A*>(attributes_.items[i]);
    refuse(name, "must be an attribute of the call");
  }
  const xla_ffi::Attributes& attributes_;
};

/// The operands or the results of a call, by name.
class Named {
 public:
  Named(const xla_ffi::Buffers& buffers, std::string_view names) : buffers_(buffers), names_(names) {
    if (!holds(buffers)) refuse("the buffers", "are laid out in a way that this version does not know");
  }

  /// Null if there is none of this name.
  const xla_ffi::Buffer* find(std::string_view name) const {
    const Index place = place_of(name, names_);
    if (place < 0) return nullptr;
    if (place >= buffers_.size || buffers_.types[place] != xla_ffi::kBuffer) refuse(name, "must be a buffer");
    const auto* buffer = static_cast<const xla_ffi::Buffer*>(buffers_.items[place]);
    if (!holds(*buffer)) refuse(name, "is laid out in a way that this version does not know");
    return buffer;
  }
  const xla_ffi::Buffer& get(std::string_view name, Index rank) const {
    const xla_ffi::Buffer* buffer = find(name);
    if (!buffer || buffer->rank != rank) refuse(name, "must be given, with the right number of axes");
    return *buffer;
  }
  /// Null if there is none of this name, or if it is empty.
  template <class T>
  T* find(std::string_view name, Shape shape) const {
    const xla_ffi::Buffer* buffer = find(name);
    if (!buffer) return nullptr;
    if (buffer->dtype != kDataType<const T> ||
        !std::equal(shape.begin(), shape.end(), buffer->shape, buffer->shape + buffer->rank))
      refuse(name, "must have the dtype and the shape that go with the other arrays");
    return static_cast<T*>(buffer->data);
  }
  template <class T>
  T* get(std::string_view name, Shape shape) const {
    if (place_of(name, names_) < 0) refuse(name, "must be given");
    return find<T>(name, shape);
  }

 private:
  const xla_ffi::Buffers& buffers_;
  const std::string_view names_;
};

constexpr const char* kStates[kMaxStates] = {"h", "c"};

/// What both passes read.
template <class T>
struct Problem {
  explicit Problem(const xla_ffi::CallFrame& frame)
      : attributes(frame.attributes),
        operands(frame.arguments, attributes.words("operands")),
        results(frame.results, attributes.words("results")),
        go_backwards(option("go_backwards")) {
    const Cell cell = cell_from_name(std::string(attributes.words("cell")));
    traits = cell_traits(cell);
    const xla_ffi::Buffer& x = operands.get("x", 3);
    batch = x.shape[0], time = x.shape[1], inputs = x.shape[2];
    is_vector = cell == Cell::indrnn;
    const xla_ffi::Buffer& recurrent = operands.get("recurrent_kernel", is_vector ? 1 : 2);
    outputs = recurrent.shape[0];
    units = traits.projected ? operands.get("projection", 2).shape[0] : outputs;
    columns = traits.gates * units;
    weights.cell = cell;
    weights.inputs = inputs;
    weights.units = units;
    weights.kernel = {operands.get<const T>("kernel", {inputs, columns}), columns, 1};
    if (is_vector)
      weights.parameters = {operands.get<const T>("recurrent_kernel", {units}), 0, 1};
    else
      weights.recurrent_kernel = {operands.get<const T>("recurrent_kernel", {outputs, columns}), columns, 1};
    if (traits.projected) {
      weights.outputs = outputs;
      weights.projection = {operands.get<const T>("projection", {units, outputs}), outputs, 1};
    }
    if (has_peephole()) weights.parameters = {operands.get<const T>("peephole", {traits.parameters, units}), units, 1};
    weights.bias = {find_bias<const T>(operands, "bias"), columns, 1};
    attributes.read_activations(weights.activations);
  }

  Index width(int state) const { return state == 0 ? outputs : units; }
  bool has_peephole() const { return traits.parameters > 0 && !is_vector; }
  template <class E>
  E* find_bias(const Named& from, const char* name) const {
    return traits.bias_rows == 1 ? from.find<E>(name, {columns}) : from.find<E>(name, {traits.bias_rows, columns});
  }
  bool option(std::string_view name) const { return place_of(name, attributes.words("options")) >= 0; }

  /// The part of a call that forward and backward share; time as it runs.
  template <class Call>
  Call call() const {
    Call call{};
    call.batch = batch;
    call.time = time;
    call.x = operands.get<const T>("x", {batch, time, inputs});
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
      call.initial_state[s] = operands.find<const T>(std::string("initial_") + kStates[s], {batch, width(s)});
    call.input_factors = operands.find<const T>("dropout_mask", {batch, traits.gates, inputs});
    call.recurrent_factors = operands.find<const T>("recurrent_dropout_mask", {batch, traits.gates, outputs});
    for (int s = 0; s < traits.states; ++s) {
      call.zoneout[s] = operands.find<const T>(std::string("zoneout_") + kStates[s], {batch, time, width(s)});
      call.zoneout_batch_stride[s] = time * width(s);
      call.zoneout_time_stride[s] = width(s);
      if (go_backwards && call.zoneout[s])
        calls::start_at_last_step(call.zoneout[s], call.zoneout_time_stride[s], time);
    }
    return call;
  }
  /// [B, T, slots, H]
  template <class E>
  E* tape(const Named& from) const {
    const bool zoneout = operands.find("zoneout_h") || operands.find("zoneout_c");
    return from.get<E>("tape", {batch, time, tape_slots(weights, zoneout), units});
  }
  const std::uint8_t* mask() const { return operands.find<const std::uint8_t>("mask", {batch, time}); }

  const Attributes attributes;
  const Named operands, results;
  const bool go_backwards;
  bool is_vector;
  CellTraits traits;
  Index batch, time, inputs, units, outputs, columns;  ///< outputs: how wide h is
  Weights<T> weights{};
};

/// One thread for the calls that take many. XLA makes its calls from as many threads as there are processors, and
/// OpenMP makes a team for each of them, n * (n - 1) threads in the end: thousands on a large machine, more than a
/// container may be allowed. Of up to four the teams are few, and calling straight from XLA's threads is as fast, or
/// faster where other programs run: OpenMP does not spin when it has more threads than processors.
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
  if (problem.results.find("tape")) call.tape = problem.template tape<T>(problem.results);
  forward(problem.weights, call);
  if (last && h) std::copy_n(h, batch * outputs, last);
  if (last) calls::clear_empty_rows(problem.mask(), batch, time, outputs, last);
}

template <class T>
void run_backward(const Problem<T>& problem, int threads) {
  const Named &operands = problem.operands, &results = problem.results;
  const Index batch = problem.batch, time = problem.time, inputs = problem.inputs, outputs = problem.outputs;
  auto call = problem.template call<Backward<T>>();
  call.threads = threads;
  call.tape = problem.template tape<const T>(operands);
  call.dy = operands.find<const T>("dy", {batch, time, outputs});
  call.dy_batch_stride = time * outputs;
  call.dy_time_stride = outputs;
  for (int s = 0; s < problem.traits.states; ++s)
    call.dfinal_state[s] = operands.find<const T>(std::string("d") + kStates[s], {batch, problem.width(s)});
  Memory dfinal;
  if (const T* dlast = operands.find<const T>("dlast", {batch, outputs})) {
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
  call.dbias = problem.template find_bias<T>(results, "dbias");
  for (int s = 0; s < problem.traits.states; ++s)
    call.dinitial_state[s] = results.find<T>(std::string("dinitial_") + kStates[s], {batch, problem.width(s)});
  backward(problem.weights, call);
}

/// Answer XLA's question what a handler is. `api` may be null.
void describe(const xla_ffi::Api* api, xla_ffi::Metadata& metadata) {
  // Minor versions differ in fields at the end of structs, which are looked for when they are needed. So any will do.
  const int minor = api ? api->version.minor_version : xla_ffi::kLeastMinorVersion;
  metadata.version = {sizeof(xla_ffi::Version), nullptr, xla_ffi::kMajorVersion, minor};
  metadata.traits = 0;
  if (holds(metadata)) metadata.state_type = 0;
}

/// Answer XLA's question what the handler is, or run f(problem, threads); no exception leaves it.
template <class F>
xla_ffi::Error* handle(xla_ffi::CallFrame* frame, F&& f) {
  if (frame->extensions && frame->extensions->type == xla_ffi::kMetadataExtension) {
    describe(frame->api, *reinterpret_cast<const xla_ffi::MetadataExtension*>(frame->extensions)->metadata);
    return nullptr;
  }
  const xla_ffi::Api& api = *frame->api;
  try {
    if (api.version.major_version != xla_ffi::kMajorVersion || !holds(*frame))
      return error(
          api, xla_ffi::kFailedPrecondition,
          "fastrnn: XLA's interface for handlers must be of major version 0; install a jaxlib that has it, or a "
          "later fastrnn");
    if (frame->stage != xla_ffi::kExecute)
      return error(api, xla_ffi::kInvalidArgument, "fastrnn: the handler must be registered for execution alone");
    const Attributes attributes(frame->attributes);
    const Named operands(frame->arguments, attributes.words("operands"));
    const xla_ffi::DataType dtype = operands.get("x", 3).dtype;
    const auto run = [&](auto zero) {
      const Problem<decltype(zero)> problem(*frame);
      with_threads(problem, [&](int threads) { f(problem, threads); });
    };
    if (dtype == xla_ffi::kFloat32)
      run(0.0f);
    else
      run(0.0);  // another type is refused with the shape
    return nullptr;
  } catch (const std::invalid_argument& e) {
    return error(api, xla_ffi::kInvalidArgument, e.what());
  } catch (const std::bad_alloc&) {
    return error(api, xla_ffi::kResourceExhausted,
                 "fastrnn: no memory for the packed weights and the workspace; use smaller sizes");
  } catch (const std::exception& e) {
    return error(api, xla_ffi::kInternal, e.what());
  } catch (...) {
    return error(api, xla_ffi::kInternal, "fastrnn: an exception of an unknown type");
  }
}

}  // namespace

xla_ffi::Error* forward(xla_ffi::CallFrame* frame) {
  return handle(frame, [](const auto& problem, int threads) { run_forward(problem, threads); });
}
xla_ffi::Error* backward(xla_ffi::CallFrame* frame) {
  return handle(frame, [](const auto& problem, int threads) { run_backward(problem, threads); });
}

}  // namespace fastrnn::xla
