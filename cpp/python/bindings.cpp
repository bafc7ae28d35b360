// fastrnn._core: checks arrays, fills the structs of the C++ interface, releases the GIL and calls. Everything that a
// caller can get wrong is refused here, with a message of the form "where: what must hold, got what came; what to do".
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>

#include "calls.hpp"
#include "dlpack.hpp"
#include "fastrnn/fastrnn.hpp"
#include "tensorflow.hpp"
#include "xla.hpp"

namespace py = pybind11;

namespace {

using fastrnn::Cell;
using fastrnn::CellTraits;
using fastrnn::kMaxStates;
using Index = std::int64_t;
using Shape = std::vector<Index>;

// ---- Messages

template <class... Part>
std::string text(const Part&... part) {
  std::ostringstream out;
  (out << ... << part);
  return out.str();
}
std::string to_text(const Shape& shape) {
  std::string s = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}
std::string type_name(py::handle object) { return py::cast<std::string>(py::type::handle_of(object).attr("__name__")); }
Shape shape_of(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }
std::string dtype_text(const py::array& a) { return py::cast<std::string>(py::str(a.dtype())); }

/// What a message calls an argument: its name, or name[item] for one of a list. Made into text for a message only.
struct Label {
  const char* name;
  int item;
  Label(const char* name, int item = -1) : name(name), item(item) {}
};
std::ostream& operator<<(std::ostream& out, const Label& label) {
  out << label.name;
  return label.item < 0 ? out : out << '[' << label.item << ']';
}

// ---- Arrays

template <class T>
constexpr const char* kDtype = std::is_same_v<T, float> ? "float32" : "float64";

/// The object as an array, unchanged, or a TypeError.
py::array as_array(py::handle object, const std::string& where, Label name) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(
        text(where, ": ", name, " must be a NumPy array, got ", type_name(object), "; convert it with np.asarray"));
  if (!Py_IS_TYPE(object.ptr(), reinterpret_cast<PyTypeObject*>(py::detail::npy_api::get().PyArray_Type_)) &&
      py::hasattr(object, "mask"))
    throw py::type_error(
        text(where, ": ", name, " must be a plain array, got a masked array, whose mask would be lost; fill it first"));
  return py::reinterpret_borrow<py::array>(object);
}

py::object sequence_of(py::handle object, std::size_t n, const std::string& where, const char* what) {
  if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object))
    throw py::type_error(
        text(where, ": ", what, " must be a list or tuple of ", n, " arrays, got ", type_name(object)));
  if (py::len(object) != n)
    throw py::value_error(text(where, ": ", what, " must have ", n, " items, got ", py::len(object)));
  return py::reinterpret_borrow<py::object>(object);
}

template <class T>
bool is_native(const py::array& a) {
  return py::isinstance<py::array_t<T>>(a);
}

/// float32 or float64, native byte order, as the weights are.
template <class T>
void require_dtype(const py::array& a, const std::string& where, Label name) {
  if (!is_native<T>(a))
    throw py::type_error(text(where, ": ", name, " must be ", kDtype<T>, " like the weights, got ", dtype_text(a),
                              "; convert it with ", name, ".astype(\"", kDtype<T>, "\")"));
}

template <class Extents>
void require_shape(const py::array& a, const Extents& shape, const std::string& where, Label name,
                   const char* meaning) {
  if (!std::equal(std::begin(shape), std::end(shape), a.shape(), a.shape() + a.ndim()))
    throw py::value_error(text(where, ": ", name, " must have shape ", to_text(Shape(shape)), " (", meaning, "), got ",
                               to_text(shape_of(a))));
}

/// Whether the kernels can read the array where it is: aligned, strides of whole elements.
template <class T>
bool readable_in_place(const py::array& a) {
  if (reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) != 0) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    if (a.strides(i) % static_cast<py::ssize_t>(sizeof(T)) != 0) return false;
  return true;
}
py::array copied(const py::array& a) { return a.attr("copy")("C"); }
/// No array: null. (py::array() is one without elements, which takes a tenth of a microsecond to make.)
py::array no_array() { return py::reinterpret_steal<py::array>(py::handle()); }
template <class T>
void require_writable(const py::array& a, const std::string& where, Label name) {
  if (!a.writeable() || !(a.flags() & py::array::c_style) || !readable_in_place<T>(a))
    throw py::value_error(text(where, ": ", name, " must be writable and contiguous, got an array that is ",
                               a.writeable() ? "not contiguous" : "read-only",
                               "; make one with numpy.empty((batch, units), \"", kDtype<T>, "\")"));
}

/// Readable, with the elements of the last axis next to each other; a copy if it is not.
template <class T>
py::array rows_contiguous(const py::array& a) {
  const py::ssize_t last = a.ndim() - 1;
  const bool unit = a.shape(last) <= 1 || a.strides(last) == static_cast<py::ssize_t>(sizeof(T));
  return unit && readable_in_place<T>(a) ? a : copied(a);
}
/// Readable and C-contiguous; a copy if it is not.
template <class T>
py::array contiguous(const py::array& a) {
  return (a.flags() & py::array::c_style) && readable_in_place<T>(a) ? a : copied(a);
}

/// Whether the bytes between an array's first and last element and those of another have any in common.
bool overlap(const py::array& a, const py::array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const auto bounds = [](const py::array& array) {
    auto first = reinterpret_cast<std::uintptr_t>(array.data()), last = first;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
      const py::ssize_t reach = (array.shape(i) - 1) * array.strides(i);
      (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
    }
    return std::make_pair(first, last + static_cast<std::uintptr_t>(array.itemsize()));
  };
  const auto x = bounds(a), y = bounds(b);
  return x.first < y.second && y.first < x.second;
}

template <class T>
const T* data(const py::array& a) {
  return static_cast<const T*>(a.data());
}
template <class T>
Index stride(const py::array& a, int axis) {
  return a.strides(axis) / static_cast<Index>(sizeof(T));
}

/// Results from here on lie in memory that is used again (see fastrnn::allocate).
constexpr Index kLargeResult = Index(1) << 18;

/// A new array; a shape whose size no address space holds is refused before NumPy sees it.
template <class T>
py::array_t<T> empty(const Shape& shape, const std::string& where, const char* what) {
  Index bytes = sizeof(T);
  for (Index n : shape)
    if (n != 0 && __builtin_mul_overflow(bytes, n, &bytes))
      throw py::value_error(text(where, ": ", what, " of shape ", to_text(shape),
                                 " is larger than the address space; use smaller sizes"));
  if (bytes < kLargeResult) return py::array_t<T>(shape);
  std::unique_ptr<fastrnn::Memory> memory;
  try {
    memory = std::make_unique<fastrnn::Memory>(fastrnn::allocate(bytes));
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, text(where, ": ", what, " of shape ", to_text(shape), " needs ", bytes >> 20,
                                            " MiB, more than there is; use smaller sizes")
                                           .c_str());
    throw py::error_already_set();
  }
  const T* const data = static_cast<const T*>(memory->get());
  const py::capsule base(memory.get(), [](void* p) { delete static_cast<fastrnn::Memory*>(p); });
  memory.release();  // the capsule's from now on
  return py::array_t<T>(shape, data, base);
}

// ---- Weights

class Tape;

/// What a call is given beside x and the states: None, or what Options makes of it.
struct Options {
  py::object mask = py::none(), dropout_mask = py::none(), recurrent_dropout_mask = py::none(), embedding = py::none();
  bool zero_output_for_mask = false;
  int threads = 0;
  py::object zoneout_mask[kMaxStates] = {py::none(), py::none()};
};

struct Returns {
  bool sequences, state, go_backwards;
};

/// The weights of one cell. The public type is this; what depends on the dtype is below it.
class Weights {
 public:
  virtual ~Weights() = default;
  virtual py::tuple forward(const py::array& x, py::handle initial_state, const Options& options,
                            const Returns& returns, py::handle out, bool training) const = 0;
  virtual std::shared_ptr<Tape> restore_tape(const py::array& saved, const py::array& x, py::handle initial_state,
                                             const Options& options, const Returns& returns) const = 0;
  virtual int tape_slots(bool zoneout = false) const = 0;
  virtual py::tuple step(const py::array& x, py::handle states, py::handle out) const = 0;
  virtual py::tuple backward(py::handle dy, const Tape& tape, int threads, bool with_initial_state) const = 0;
  virtual py::dtype dtype() const = 0;

  std::string name, step_name;
  Cell cell;
  CellTraits traits;
  Index inputs, units, outputs;  ///< outputs: how wide h is; the last output is all of state 0
  py::array kernel = no_array(), recurrent_kernel = no_array();
  py::object bias, peephole, projection, cell_norm, layer_norm;  ///< None or arrays

  Index width(int state) const { return state == 0 ? outputs * traits.hidden : units; }
  fastrnn::Activation activations[fastrnn::kActivations];
};

/// What backward needs of one forward pass.
class Tape {
 public:
  std::shared_ptr<const Weights> weights;
  py::array x = no_array();              ///< times the dropout mask that all gates share, if there is one
  py::object initial_state[kMaxStates];  ///< None or arrays
  Options options;
  Returns returns;
  py::array saved = no_array();
  bool consumed = false;
};

/// Take the GIL again after a call. A daemon thread that outlives the interpreter waits here for the end of the
/// process, as later Pythons do it: older ones would end the thread, which C++ frames and OpenMP do not survive.
void take_gil(PyThreadState* thread) {
#if PY_VERSION_HEX >= 0x030D0000
  while (Py_IsFinalizing()) pause();
#else
  while (_Py_IsFinalizing()) pause();
#endif
  try {
    PyEval_RestoreThread(thread);
  } catch (...) {  // the interpreter began to finalize while this waited, and ends the thread by unwinding it
    for (;;) pause();
  }
}

/// Ctrl-C during a call: Python's own check, which runs the signal handlers in the thread that has them. `thread`: the
/// PyThreadState* of the caller.
bool signal_arrived(void* thread) {
  PyThreadState*& state = *static_cast<PyThreadState**>(thread);
  take_gil(state);
  const bool raised = PyErr_CheckSignals() != 0;
  state = PyEval_SaveThread();
  return raised;
}

/// f(&thread) without the GIL, `thread` being the caller's PyThreadState*.
template <class F>
void without_gil(F&& f) {
  PyThreadState* thread = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    f(&thread);
  } catch (...) {
    error = std::current_exception();
  }
  take_gil(thread);
  if (error) std::rethrow_exception(error);
}

/// Which of the compiled instruction sets `name` is.
constexpr std::size_t kMostIsas = 4;
const std::vector<std::string> kIsaNames = fastrnn::compiled_isas();
std::size_t isa_number(const char* name) {
  std::size_t i = 0;
  while (kIsaNames[i] != name) ++i;
  return i;
}

template <class T>
class TypedWeights final : public Weights, public std::enable_shared_from_this<TypedWeights<T>> {
 public:
  TypedWeights(const std::string& cell_name, const py::array& kernel_in, const py::array& recurrent_in,
               const py::object& bias_in, const py::object& peephole_in, const py::object& projection_in,
               const py::object& cell_norm_in, const py::object& layer_norm_in, py::handle activations_in,
               const std::string& name_in) {
    name = name_in;
    step_name = name + ".step";
    cell = fastrnn::cell_from_name(cell_name);
    traits = fastrnn::cell_traits(cell);
    const Index G = traits.gates;
    require_dtype_of_weights(recurrent_in, "recurrent_kernel");
    if (is_vector()) {
      if (recurrent_in.ndim() != 1 || recurrent_in.shape(0) < 1)
        throw py::value_error(text(name, ": recurrent_kernel must have shape [units] with units >= 1, got ",
                                   to_text(shape_of(recurrent_in))));
    } else if (!projection_in.is_none()) {
      if (recurrent_in.ndim() != 2 || recurrent_in.shape(0) < 1 || recurrent_in.shape(1) % G != 0 ||
          recurrent_in.shape(1) < G * recurrent_in.shape(0))
        throw py::value_error(text(name, ": recurrent_kernel must have shape [outputs, ", G,
                                   " * units] with units >= outputs >= 1 to go with a projection, got ",
                                   to_text(shape_of(recurrent_in))));
    } else if (recurrent_in.ndim() != 2 || recurrent_in.shape(0) < 1 ||
               recurrent_in.shape(1) * traits.hidden != G * recurrent_in.shape(0))
      throw py::value_error(text(name, ": recurrent_kernel must have shape [",
                                 traits.hidden > 1 ? "4 * units" : "units", ", ", G, " * units] with units >= 1, got ",
                                 to_text(shape_of(recurrent_in))));
    outputs = recurrent_in.shape(0) / traits.hidden;
    units = is_vector() ? outputs : recurrent_in.shape(1) / G;
    projection = projection_in;
    if (projection.is_none() == traits.projected)
      throw py::value_error(text(name, ": projection must be ", traits.projected ? "an array" : "None",
                                 " for the cell ", cell_name, ", got ", type_name(projection)));
    if (traits.projected) {
      const py::array p = as_array(projection, name, "projection");
      require_dtype_of_weights(p, "projection");
      require_shape(p, Shape{units, outputs}, name, "projection", "units, outputs");
      if (!readable_in_place<T>(p)) projection = copied(p);
    }
    if (kernel_in.ndim() != 2 || kernel_in.shape(1) != G * units)
      throw py::value_error(text(name, ": kernel must have shape [features, ", G * units,
                                 "] to go with a recurrent_kernel of shape ", to_text(shape_of(recurrent_in)), ", got ",
                                 to_text(shape_of(kernel_in))));
    inputs = kernel_in.shape(0);
    kernel = readable_in_place<T>(kernel_in) ? kernel_in : copied(kernel_in);
    recurrent_kernel = readable_in_place<T>(recurrent_in) ? recurrent_in : copied(recurrent_in);
    peephole = peephole_in;
    const int peepholes = is_vector() ? 0 : traits.parameters;
    peephole =
        checked_rows(peephole_in, "peephole", peepholes > 0, {peepholes, units}, "a row for each gate that sees c");
    cell_norm = checked_rows(cell_norm_in, "cell_norm", traits.cell_norm, {2, units}, "gain and bias");
    if (is_vector() && !layer_norm_in.is_none())
      throw py::value_error(text(name, ": layer_norm must be None for the cell ", cell_name));
    layer_norm = checked_rows(layer_norm_in, "layer_norm", !layer_norm_in.is_none(), {2, G * units},
                              "gains of what x and of what the state give");
    read_activations(activations_in);
    bias = bias_in;
    if (!bias.is_none()) {
      const py::array b = as_array(bias, name, "bias");
      require_dtype_of_weights(b, "bias");
      const Shape shape = traits.bias_rows == 1 ? Shape{G * units} : Shape{traits.bias_rows, G * units};
      require_shape(b, shape, name, "bias",
                    traits.bias_rows == 1 ? "one per gate and unit" : "a row for the input, a row for the state");
      bias = contiguous<T>(b);
    }
  }

  py::dtype dtype() const override { return py::dtype::of<T>(); }

  py::tuple forward(const py::array& x, py::handle initial_state, const Options& options, const Returns& returns,
                    py::handle out, bool training) const override {
    Tape tape = tape_of(x, initial_state, options, returns);
    const Index B = tape.x.shape(0), steps = tape.x.shape(1);
    fastrnn::Forward<T> call =
        call_on<fastrnn::Forward<T>>(tape.x, returns.go_backwards, tape.initial_state, tape.options);
    py::array y = no_array();
    if (returns.sequences) {
      y = out.is_none() ? empty<T>({B, steps, outputs}, name, "the output") : checked_out_sequence(out, tape);
      call.y = static_cast<T*>(const_cast<void*>(y.data()));
      call.y_batch_stride = stride<T>(y, 0);
      call.y_time_stride = stride<T>(y, 1);
    } else if (!out.is_none()) {
      throw py::value_error(name + ": out must be None without return_sequences; the last h has an array of its own");
    }
    py::array final_state[kMaxStates] = {no_array(), no_array()};
    for (int s = 0; s < traits.states; ++s)
      if (returns.state || (s == 0 && !returns.sequences)) {
        auto state = empty<T>({B, width(s)}, name, "a state");
        call.final_state[s] = state.mutable_data();
        final_state[s] = state;
      }
    if (!returns.sequences) y = final_state[0];
    if (training) {
      auto saved = empty<T>({B, steps, tape_slots(has_zoneout(tape.options)), units}, name, "the tape");
      call.tape = saved.mutable_data();
      tape.saved = saved;
    }
    run(name, [&](const fastrnn::Interrupt& interrupt) {
      call.interrupt = interrupt;
      return with_weights(fastrnn::Pass::forward, call, [&](const auto& w) { return fastrnn::forward(w, call); });
    });
    py::tuple states(returns.state ? traits.states : 0);
    for (int s = 0; s < static_cast<int>(states.size()); ++s)
      states[s] = s == 0 && !returns.sequences ? copied(final_state[0]) : final_state[s];
    if (!returns.sequences) clear_empty_rows(tape.options, B, steps, y);
    return py::make_tuple(y, states, training ? py::cast(kept(std::move(tape))) : py::object(py::none()));
  }

  std::shared_ptr<Tape> restore_tape(const py::array& saved, const py::array& x, py::handle initial_state,
                                     const Options& options, const Returns& returns) const override {
    Tape tape = tape_of(x, initial_state, options, returns);
    require_dtype<T>(saved, name, "saved");
    require_shape(saved, Shape{tape.x.shape(0), tape.x.shape(1), tape_slots(has_zoneout(tape.options)), units}, name,
                  "saved", "batch, time, slots, units");
    tape.saved = contiguous<T>(saved);
    return kept(std::move(tape));
  }

  int tape_slots(bool zoneout = false) const override { return fastrnn::tape_slots(view_, zoneout); }

  py::tuple step(const py::array& x_in, py::handle states_in, py::handle out_in) const override {
    const std::string& where = step_name;
    require_dtype<T>(x_in, where, "x_t");
    if (x_in.ndim() != 2 || x_in.shape(1) != inputs)
      throw py::value_error(
          text(where, ": x_t must have shape [batch, ", inputs, "], one time step, got ", to_text(shape_of(x_in))));
    py::array x = rows_contiguous<T>(x_in);
    const Index B = x.shape(0);
    py::object initial[kMaxStates];
    checked_states(states_in, where, "states", B, initial);
    fastrnn::Forward<T> call{};
    for (int s = 0; s < traits.states; ++s)
      call.initial_state[s] = initial[s].is_none() ? nullptr : data<T>(initial[s]);
    fastrnn::Memory copies[kMaxStates];
    py::object new_states[kMaxStates];
    py::object y;
    if (out_in.is_none()) {
      auto h = empty<T>({B, outputs}, where, "the output");
      call.y = h.mutable_data();
      call.y_batch_stride = outputs;
      y = h;
      for (int s = 0; s < traits.states; ++s) new_states[s] = empty<T>({B, width(s)}, where, "a state");
    } else {
      const py::object items = sequence_of(out_in, static_cast<std::size_t>(traits.states), where, "out");
      for (int s = 0; s < traits.states; ++s) {
        new_states[s] = checked_out(items[py::int_(s)], where, {"out", s}, {B, width(s)});
        for (int other = 0; other < s; ++other)
          if (overlap(py::array(new_states[s]), py::array(new_states[other])))
            throw py::value_error(text(where, ": out[", other, "] and out[", s,
                                       "] must not share memory; give each state an array of its own"));
      }
      // What lies where the kernel writes is read from a copy; all but h are read and written element by element.
      for (int s = 0; s < traits.states; ++s) {
        const py::array written = new_states[s];
        if (overlap(x, written)) x = copied(x);
        for (int i = 0; i < traits.states; ++i)
          if (!initial[i].is_none() && overlap(initial[i], written) && !copies[i] &&
              (i == 0 || i != s || data<T>(initial[i]) != data<T>(written))) {
            const Index bytes = B * width(i) * static_cast<Index>(sizeof(T));
            copies[i] = fastrnn::allocate(bytes);
            std::memcpy(copies[i].get(), call.initial_state[i], static_cast<std::size_t>(bytes));
            call.initial_state[i] = static_cast<const T*>(copies[i].get());
          }
      }
      y = new_states[0];
    }
    call.batch = B;
    call.time = 1;
    call.x = data<T>(x);
    call.x_batch_stride = stride<T>(x, 0);
    call.x_time_stride = 0;
    py::list states(traits.states);
    for (int s = 0; s < traits.states; ++s) {
      call.final_state[s] = static_cast<T*>(
          const_cast<void*>(static_cast<const void*>(data<T>(py::reinterpret_borrow<py::array>(new_states[s])))));
      states[s] = new_states[s];
    }
    run(name, [&](const fastrnn::Interrupt& interrupt) {
      call.interrupt = interrupt;
      return with_weights(fastrnn::Pass::forward, call, [&](const auto& w) { return fastrnn::forward(w, call); });
    });
    return py::make_tuple(y, states);
  }

  py::tuple backward(py::handle dy_in, const Tape& tape, int threads, bool with_initial_state) const override {
    const std::string where = name + ".backward";
    const Index B = tape.x.shape(0), steps = tape.x.shape(1), G = traits.gates;

    // dy alone, or with return_state [dy, dh, dc].
    py::object given[1 + kMaxStates];
    for (py::object& object : given) object = py::none();
    if (tape.returns.state && !dy_in.is_none()) {
      const py::object items = sequence_of(dy_in, 1 + static_cast<std::size_t>(traits.states), where, "dy");
      for (int i = 0; i <= traits.states; ++i) given[i] = items[py::int_(i)];
    } else {
      given[0] = py::reinterpret_borrow<py::object>(dy_in);
    }
    const auto gradient = [&](const py::object& object, Label of, const Shape& shape) -> py::object {
      if (object.is_none()) return object;
      const py::array a = as_array(object, where, of);
      require_dtype<T>(a, where, of);
      require_shape(a, shape, where, of, "that of what it is the gradient of");
      return rows_contiguous<T>(a);
    };
    py::object dy = gradient(given[0], "dy", tape.returns.sequences ? Shape{B, steps, outputs} : Shape{B, width(0)});
    py::object dfinal[kMaxStates];
    for (int s = 0; s < traits.states; ++s) {
      dfinal[s] =
          tape.returns.state ? gradient(given[1 + s], s == 0 ? "dh" : "dc", {B, width(s)}) : py::object(py::none());
      if (!dfinal[s].is_none()) dfinal[s] = contiguous<T>(dfinal[s]);
    }
    if (!tape.returns.sequences && !dy.is_none() && has_empty_rows(tape.options, B, steps)) {
      const py::array mended = copied(dy);
      clear_empty_rows(tape.options, B, steps, mended);
      dy = mended;
    }
    if (!tape.returns.sequences && !dy.is_none())
      dfinal[0] = dfinal[0].is_none() ? contiguous<T>(dy) : sum(contiguous<T>(dy), dfinal[0]);

    fastrnn::Backward<T> call =
        call_on<fastrnn::Backward<T>>(tape.x, tape.returns.go_backwards, tape.initial_state, tape.options);
    call.threads = threads;
    call.tape = data<T>(tape.saved);
    if (tape.returns.sequences && !dy.is_none()) {
      const py::array a = dy;
      call.dy = data<T>(a);
      call.dy_batch_stride = stride<T>(a, 0);
      call.dy_time_stride = stride<T>(a, 1);
    }
    auto dx = empty<T>({B, steps, inputs}, where, "the gradient of x");
    call.dx = dx.mutable_data();
    call.dx_batch_stride = steps * inputs;
    call.dx_time_stride = inputs;
    if (tape.returns.go_backwards) fastrnn::calls::start_at_last_step(call.dx, call.dx_time_stride, steps);
    auto dkernel = empty<T>({inputs, G * units}, where, "a gradient");
    auto drecurrent = empty<T>(shape_of(recurrent_kernel), where, "a gradient");
    call.dkernel = dkernel.mutable_data();
    (is_vector() ? call.dparameters : call.drecurrent_kernel) = drecurrent.mutable_data();
    py::list weights_gradient;
    weights_gradient.append(dkernel);
    weights_gradient.append(drecurrent);
    if (!bias.is_none()) {
      auto dbias = empty<T>(shape_of(bias), where, "a gradient");
      call.dbias = dbias.mutable_data();
      weights_gradient.append(dbias);
    }
    if (!peephole.is_none()) {
      auto dpeephole = empty<T>({traits.parameters, units}, where, "a gradient");
      call.dparameters = dpeephole.mutable_data();
      weights_gradient.append(dpeephole);
    }
    if (!projection.is_none()) {
      auto dprojection = empty<T>({units, outputs}, where, "a gradient");
      call.dprojection = dprojection.mutable_data();
      weights_gradient.append(dprojection);
    }
    if (!cell_norm.is_none()) {
      auto dcell_norm = empty<T>({2, units}, where, "a gradient");
      call.dcell_norm = dcell_norm.mutable_data();
      weights_gradient.append(dcell_norm);
    }
    if (!layer_norm.is_none()) {
      auto dlayer_norm = empty<T>({2, G * units}, where, "a gradient");
      call.dlayer_norm = dlayer_norm.mutable_data();
      weights_gradient.append(dlayer_norm);
    }
    py::list dinitial;
    for (int s = 0; s < traits.states; ++s) {
      if (!dfinal[s].is_none()) call.dfinal_state[s] = data<T>(dfinal[s]);
      if (!with_initial_state) continue;
      auto d = empty<T>({B, width(s)}, where, "a gradient");
      call.dinitial_state[s] = d.mutable_data();
      dinitial.append(d);
    }
    run(name, [&](const fastrnn::Interrupt& interrupt) {
      call.interrupt = interrupt;
      return with_weights(fastrnn::Pass::backward, call, [&](const auto& w) { return fastrnn::backward(w, call); });
    });
    if (shares_dropout_mask(tape.options)) dx = times(dx, tape.options.dropout_mask);
    return py::make_tuple(dx, weights_gradient, dinitial);
  }

 private:
  /// All that a call is given, checked; nothing saved yet.
  Tape tape_of(const py::array& x_in, py::handle initial_state, const Options& options, const Returns& returns) const {
    py::array x = options.embedding.is_none() ? checked_x(x_in) : checked_ids(x_in, options);
    Tape tape;
    tape.returns = returns;
    checked_states(initial_state, name, "initial_state", x.shape(0), tape.initial_state);
    tape.options = checked_options(options, x.shape(0), x.shape(1));
    if (!options.embedding.is_none()) {
      tape.options.embedding = contiguous<T>(options.embedding);
      require_ids(x, tape.options);
      if (shares_dropout_mask(options)) {  // each row of the batch then has another embedding
        x = gathered(x, tape.options);
        tape.options.embedding = py::none();
      }
    }
    tape.x = shares_dropout_mask(options) ? times(x, tape.options.dropout_mask) : x;
    return tape;
  }
  std::shared_ptr<Tape> kept(Tape&& tape) const {
    tape.weights = this->shared_from_this();
    return std::make_shared<Tape>(std::move(tape));
  }

  /// An array that the outputs of all steps are written to.
  py::array checked_out_sequence(py::handle object, const Tape& tape) const {
    const py::array out = as_array(object, name, "out");
    require_dtype<T>(out, name, "out");
    require_shape(out, Shape{tape.x.shape(0), tape.x.shape(1), outputs}, name, "out", "batch, time, units");
    if (out.size() == 0 && out.writeable()) return out;
    const bool in_place = readable_in_place<T>(out) && (outputs == 1 || stride<T>(out, 2) == 1);
    const bool own = (out.shape(0) < 2 || stride<T>(out, 0) != 0) && (out.shape(1) < 2 || stride<T>(out, 1) != 0);
    if (!out.writeable() || !in_place || !own)
      throw py::value_error(text(name, ": out must be writable, with the units of a step next to each other, got an ",
                                 "array that is ", out.writeable() ? "laid out otherwise" : "read-only",
                                 "; make one with numpy.empty((batch, time, units), \"", kDtype<T>, "\")"));
    const auto require_apart = [&](const py::object& other, Label what) {
      if (!other.is_none() && overlap(out, py::array(other)))
        throw py::value_error(text(name, ": out must not reach into the memory of ", what,
                                   ", which is read while it is written; give the outputs an array of their own"));
    };
    require_apart(tape.x, "x");
    for (int s = 0; s < traits.states; ++s) {
      require_apart(tape.initial_state[s], {"initial_state", s});
      require_apart(tape.options.zoneout_mask[s], {"zoneout_mask", s});
    }
    require_apart(tape.options.dropout_mask, "dropout_mask");
    require_apart(tape.options.recurrent_dropout_mask, "recurrent_dropout_mask");
    require_apart(tape.options.embedding, "embedding");
    require_apart(kernel, "kernel");
    require_apart(recurrent_kernel, "recurrent_kernel");
    require_apart(bias, "bias");
    require_apart(peephole, "peephole");
    require_apart(projection, "projection");
    require_apart(cell_norm, "cell_norm");
    require_apart(layer_norm, "layer_norm");
    return out;
  }

  /// Whether the recurrent kernel is a vector, which the core takes as its cell's parameters.
  bool is_vector() const { return cell == Cell::indrnn; }

  /// Further weights of the cell, contiguous, that must be there or not.
  py::object checked_rows(const py::object& given, const char* of, bool wanted, const Shape& shape,
                          const char* meaning) const {
    if (given.is_none() == wanted)
      throw py::value_error(text(name, ": ", of, " must be ", wanted ? "an array" : "None", " for the cell ",
                                 traits.name, ", got ", type_name(given)));
    if (!wanted) return given;
    const py::array rows = as_array(given, name, of);
    require_dtype_of_weights(rows, of);
    require_shape(rows, shape, name, of, meaning);
    return contiguous<T>(rows);
  }

  /// A tuple (code, alpha, beta, clip) for each, made by fastrnn.activations.
  void read_activations(py::handle given) {
    if (given.is_none()) {
      const fastrnn::Weights<T> defaults{};
      return void(std::copy(std::begin(defaults.activations), std::end(defaults.activations), activations));
    }
    const py::sequence items = py::reinterpret_borrow<py::sequence>(given);
    for (int i = 0; i < fastrnn::kActivations; ++i) {
      const auto [code, alpha, beta, clip] = py::cast<std::tuple<int, double, double, double>>(items[i]);
      if (code < 0 || code >= fastrnn::kActivationKinds)
        throw py::value_error(
            text(name, ": the code of an activation must be less than ", fastrnn::kActivationKinds, ", got ", code));
      activations[i] = {static_cast<fastrnn::ActivationKind>(code), alpha, beta, clip};
    }
  }

  /// Ids [B, T] as integers of the kernels, and an embedding of the right width; what they name is checked later.
  py::array checked_ids(const py::array& ids, const Options& options) const {
    const py::array embedding = as_array(options.embedding, name, "embedding");
    require_dtype<T>(embedding, name, "embedding");
    if (embedding.ndim() != 2 || embedding.shape(1) != inputs)
      throw py::value_error(text(name, ": embedding must have shape [any, ", inputs, "] to go with a kernel of shape ",
                                 to_text(shape_of(kernel)), ", got ", to_text(shape_of(embedding))));
    const char kind = ids.dtype().kind();
    if (kind != 'i' && kind != 'u')
      throw py::type_error(text(name, ": x must be integers, rows of the embedding, got ", dtype_text(ids),
                                "; convert it with x.astype(int)"));
    if (ids.ndim() != 2)
      throw py::value_error(text(name, ": x must have shape [batch, time], ids that an embedding is given for, got ",
                                 to_text(shape_of(ids))));
    return ids.attr("astype")("int64", "C");  // a copy: what is checked is what is used, in backward too
  }
  void require_ids(const py::array& ids, const Options& options) const {
    const Index rows = py::array(options.embedding).shape(0);
    const py::object& mask = options.mask;
    for (Index b = 0; b < ids.shape(0); ++b)
      for (Index t = 0; t < ids.shape(1); ++t) {
        const Index id = *static_cast<const Index*>(ids.data(b, t));
        if ((id < 0 || id >= rows) &&
            (mask.is_none() || *static_cast<const bool*>(py::reinterpret_borrow<py::array>(mask).data(b, t))))
          throw py::value_error(text(name, ": x must have ids from 0 to ", rows - 1,
                                     ", the rows of the embedding, got ", id, " at [", b, ", ", t, "]"));
      }
  }
  /// The embedding's rows [B, T, I]; zeros for masked ids.
  py::array_t<T> gathered(const py::array& ids, const Options& options) const {
    const py::array embedding = options.embedding;
    auto x = empty<T>({ids.shape(0), ids.shape(1), inputs}, name, "the embedded input");
    T* to = x.mutable_data();
    for (Index i = 0; i < ids.size(); ++i, to += inputs) {
      const Index id = data<Index>(ids)[i];
      if (id >= 0 && id < embedding.shape(0))
        std::copy_n(data<T>(embedding) + id * inputs, inputs, to);
      else
        std::fill_n(to, inputs, T(0));
    }
    return x;
  }

  static bool shares_dropout_mask(const Options& options) {
    return !options.dropout_mask.is_none() && py::array(options.dropout_mask).ndim() == 2;
  }
  /// x [B, T, I] times factors [B, I].
  static py::array_t<T> times(const py::array& x, const py::array& factors) {
    const Index B = x.shape(0), steps = x.shape(1), n = x.shape(2);
    auto product = empty<T>({B, steps, n}, "dropout", "x times its mask");
    T* to = product.mutable_data();
    for (Index b = 0; b < B; ++b)
      for (Index t = 0; t < steps; ++t) {
        const T* from = data<T>(x) + b * stride<T>(x, 0) + t * stride<T>(x, 1);
        for (Index i = 0; i < n; ++i) *to++ = from[i] * data<T>(factors)[b * n + i];
      }
    return product;
  }

  /// mask [B, T], which checked_options made contiguous; null: none.
  static const std::uint8_t* mask_data(const Options& options) {
    return options.mask.is_none() ? nullptr : data<std::uint8_t>(options.mask);
  }
  static bool has_empty_rows(const Options& options, Index B, Index steps) {
    bool any = false;
    fastrnn::calls::for_each_empty_row(mask_data(options), B, steps, [&](Index) { any = true; });
    return any;
  }
  void clear_empty_rows(const Options& options, Index B, Index steps, const py::array& y) const {
    fastrnn::calls::clear_empty_rows(mask_data(options), B, steps, width(0), const_cast<T*>(data<T>(y)));
  }

  Options checked_options(const Options& given, Index B, Index steps) const {
    Options options = given;
    const Index G = traits.gates;
    if (!given.mask.is_none()) {
      const py::array mask = as_array(given.mask, name, "mask");
      if (!py::isinstance<py::array_t<bool>>(mask))
        throw py::type_error(text(name, ": mask must be an array of bool, True where there is a step, got ",
                                  dtype_text(mask), "; convert it with mask.astype(bool)"));
      require_shape(mask, Shape{B, steps}, name, "mask", "batch, time");
      options.mask = copied(mask);  // what forward leaves out backward does not read
    }
    const auto factors = [&](const py::object& object, const char* of, Index n, bool shared) -> py::object {
      if (object.is_none()) return object;
      const py::array a = as_array(object, name, of);
      require_dtype<T>(a, name, of);
      if (!shared || a.ndim() != 2)
        require_shape(a, Shape{B, G, n}, name, of, "batch, gates, what is masked");
      else
        require_shape(a, Shape{B, n}, name, of, "batch, features");
      return contiguous<T>(a);
    };
    options.dropout_mask = factors(given.dropout_mask, "dropout_mask", inputs, true);
    options.recurrent_dropout_mask = factors(given.recurrent_dropout_mask, "recurrent_dropout_mask", width(0), false);
    for (int s = 0; s < traits.states; ++s) {
      const py::object& of_state = given.zoneout_mask[s];
      if (of_state.is_none()) continue;
      const Label label{"zoneout_mask", s};
      const py::array a = as_array(of_state, name, label);
      require_dtype<T>(a, name, label);
      require_shape(a, Shape{B, steps, width(s)}, name, label, "batch, time, units");
      options.zoneout_mask[s] = rows_contiguous<T>(a);
    }
    return options;
  }
  static bool has_zoneout(const Options& options) {
    return !options.zoneout_mask[0].is_none() || !options.zoneout_mask[1].is_none();
  }
  static py::array sum(const py::array& a, const py::array& b) {
    py::array_t<T> total(shape_of(a));
    for (py::ssize_t i = 0; i < a.size(); ++i) total.mutable_data()[i] = data<T>(a)[i] + data<T>(b)[i];
    return total;
  }

  void require_dtype_of_weights(const py::array& a, const char* of) const {
    if (!is_native<T>(a))
      throw py::type_error(text(name, ": ", of, " must be ", kDtype<T>, " like the kernel, got ", dtype_text(a),
                                "; all weights have one dtype: convert it with ", of, ".astype(\"", kDtype<T>, "\")"));
  }

  py::array checked_x(const py::array& x) const {
    require_dtype<T>(x, name, "x");
    if (x.ndim() != 3)
      throw py::value_error(text(name, ": x must have shape [batch, time, features], got ", to_text(shape_of(x)),
                                 x.ndim() == 2 ? "; add a time axis with x[:, None, :]" : ""));
    if (x.shape(2) != inputs)
      throw py::value_error(text(name, ": x must have ", inputs, " features to go with a kernel of shape ",
                                 to_text(shape_of(kernel)), ", got ", x.shape(2), " in shape ", to_text(shape_of(x))));
    return rows_contiguous<T>(x);
  }

  /// None, a list of one [B, H] or None per state, or for a cell with one state that array itself.
  void checked_states(py::handle states, const std::string& where, const char* what, Index B,
                      py::object (&to)[kMaxStates]) const {
    for (py::object& state : to) state = py::none();
    if (states.is_none()) return;
    if (traits.states == 1 && py::isinstance<py::array>(states)) {
      to[0] = checked_state(states, where, what, {B, outputs});
      return;
    }
    const py::object items = sequence_of(states, static_cast<std::size_t>(traits.states), where, what);
    for (int s = 0; s < traits.states; ++s) {
      const py::object state = items[py::int_(s)];
      if (!state.is_none()) to[s] = checked_state(state, where, {what, s}, {B, width(s)});
    }
  }
  py::array checked_state(py::handle state, const std::string& where, Label what,
                          std::initializer_list<Index> shape) const {
    const py::array a = as_array(state, where, what);
    require_dtype<T>(a, where, what);
    require_shape(a, shape, where, what, "batch, units");
    return contiguous<T>(a);
  }

  /// An array that a step writes a state to.
  py::array checked_out(py::handle object, const std::string& where, Label what,
                        std::initializer_list<Index> shape) const {
    const py::array a = as_array(object, where, what);
    require_dtype<T>(a, where, what);
    require_shape(a, shape, where, what, "batch, units");
    require_writable<T>(a, where, what);
    return a;
  }

  /// The part of a call that forward and backward share.
  template <class Call>
  Call call_on(const py::array& x, bool go_backwards, const py::object (&initial)[kMaxStates],
               const Options& options) const {
    Call call{};
    call.batch = x.shape(0);
    call.time = x.shape(1);
    if (options.embedding.is_none()) {
      call.x = data<T>(x);
      call.x_batch_stride = stride<T>(x, 0);
      call.x_time_stride = stride<T>(x, 1);
      if (go_backwards) fastrnn::calls::start_at_last_step(call.x, call.x_time_stride, call.time);
    } else {
      call.ids = data<Index>(x);
      call.x_batch_stride = stride<Index>(x, 0);
      call.x_time_stride = stride<Index>(x, 1);
      if (go_backwards) fastrnn::calls::start_at_last_step(call.ids, call.x_time_stride, call.time);
      call.embedding = data<T>(options.embedding);
    }
    for (int s = 0; s < traits.states; ++s)
      call.initial_state[s] = initial[s].is_none() ? nullptr : data<T>(initial[s]);
    if (!options.mask.is_none()) {
      call.mask = mask_data(options);
      call.mask_batch_stride = call.time;
      call.mask_time_stride = 1;
      if (go_backwards) fastrnn::calls::start_at_last_step(call.mask, call.mask_time_stride, call.time);
      call.masked_output_is_zero = options.zero_output_for_mask;
    }
    if (!options.dropout_mask.is_none() && !shares_dropout_mask(options))
      call.input_factors = data<T>(options.dropout_mask);
    if (!options.recurrent_dropout_mask.is_none()) call.recurrent_factors = data<T>(options.recurrent_dropout_mask);
    for (int s = 0; s < traits.states; ++s) {
      if (options.zoneout_mask[s].is_none()) continue;
      const py::array mask = options.zoneout_mask[s];
      call.zoneout_batch_stride[s] = stride<T>(mask, 0);
      call.zoneout_time_stride[s] = stride<T>(mask, 1);
      call.zoneout[s] = data<T>(mask);
      if (go_backwards) fastrnn::calls::start_at_last_step(call.zoneout[s], call.zoneout_time_stride[s], call.time);
    }
    call.threads = options.threads;
    return call;
  }

  /// f(the weights): packed, or where they lie if this is their first call and it has few rows and steps. Weights that
  /// each step of a training changes serve one call, and packing them takes longer than the call.
  template <class F>
  bool with_weights(fastrnn::Pass pass, const fastrnn::Call<T>& call, F&& f) const {
    const bool first = !used_[static_cast<int>(pass)].exchange(true, std::memory_order_relaxed);
    return first && fastrnn::reads_in_place(view_, call) ? f(view_) : f(packed(pass));
  }
  /// Packed for the instruction set in use, once. Called without the GIL. No lock: it would stay locked in a child that
  /// is forked meanwhile. Threads that come here at once all pack, and the first to finish has packed for all.
  const fastrnn::PackedWeights<T>& packed(fastrnn::Pass pass) const {
    auto& slots = packed_[static_cast<int>(pass)];
    const fastrnn::PackedWeights<T>* known = slots[isa_number(fastrnn::isa())].load(std::memory_order_acquire);
    if (!known) {
      auto made = std::make_unique<const fastrnn::PackedWeights<T>>(view_, pass);
      auto& slot = slots[isa_number(made->isa())];  // another thread may have called set_isa meanwhile
      if (slot.compare_exchange_strong(known, made.get(), std::memory_order_acq_rel)) known = made.release();
    }
    return *known;
  }

  /// f(interrupt) without the GIL. False from it: Python's signal handler raised.
  template <class F>
  static void run(const std::string& where, F&& f) {
    bool finished = false;
    try {
      without_gil([&](PyThreadState** thread) { finished = f(fastrnn::Interrupt{signal_arrived, thread}); });
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError,
                      (where + ": no memory for the packed weights and the workspace; use smaller sizes").c_str());
      throw py::error_already_set();
    }
    if (!finished) throw py::error_already_set();
  }

 public:
  void prepare() {
    const auto matrix = [](const py::array& a) {
      return fastrnn::MatrixView<T>{data<T>(a), stride<T>(a, 0), stride<T>(a, 1)};
    };
    view_ = {cell, inputs, units, matrix(kernel), {nullptr, 0, 0}, {nullptr, 0, 0}};
    if (!projection.is_none()) {
      view_.outputs = outputs;
      view_.projection = matrix(projection);
    }
    if (is_vector())
      view_.parameters = {data<T>(recurrent_kernel), 0, stride<T>(recurrent_kernel, 0)};
    else
      view_.recurrent_kernel = matrix(recurrent_kernel);
    if (!peephole.is_none()) view_.parameters = matrix(peephole);
    if (!cell_norm.is_none()) view_.cell_norm = matrix(cell_norm);
    if (!layer_norm.is_none()) view_.layer_norm = matrix(layer_norm);
    std::copy(std::begin(activations), std::end(activations), view_.activations);
    if (!bias.is_none()) view_.bias = {data<T>(bias), traits.gates * units, 1};
  }

  ~TypedWeights() override {
    for (auto& pass : packed_)
      for (auto& slot : pass) delete slot.load();
  }

 private:
  fastrnn::Weights<T> view_;
  // For each pass:
  mutable std::atomic<bool> used_[2] = {};
  mutable std::atomic<const fastrnn::PackedWeights<T>*> packed_[2][kMostIsas] = {};
};

std::shared_ptr<Weights> make_weights(const std::string& cell, py::handle kernel_in, py::handle recurrent_in,
                                      const py::object& bias, const py::object& peephole, const py::object& projection,
                                      const py::object& cell_norm, const py::object& layer_norm, py::handle activations,
                                      const py::object& name_in) {
  const std::string name = name_in.is_none() ? cell : py::cast<std::string>(name_in);
  const py::array kernel = as_array(kernel_in, name, "kernel");
  const py::array recurrent = as_array(recurrent_in, name, "recurrent_kernel");
  const auto make = [&](auto zero) -> std::shared_ptr<Weights> {
    auto weights = std::make_shared<TypedWeights<decltype(zero)>>(cell, kernel, recurrent, bias, peephole, projection,
                                                                  cell_norm, layer_norm, activations, name);
    weights->prepare();
    return weights;
  };
  if (is_native<float>(kernel)) return make(0.0f);
  if (is_native<double>(kernel)) return make(0.0);
  throw py::type_error(text(name, ": kernel must be float32 or float64 in native byte order, got ", dtype_text(kernel),
                            "; convert it with kernel.astype(\"float32\")"));
}

py::array transposed(const py::array& a) {
  return py::array(a.dtype(), {a.shape(1), a.shape(0)}, {a.strides(1), a.strides(0)}, a.data(), a);
}

/// Gates r z n, as PyTorch has them in the rows of `from`, in the kernels' order z r n; rows from `to` on, contiguous.
template <class T>
void swap_gates(const py::array& from, T* to) {
  const Index rows = from.shape(0), units = rows / 3;
  const Index columns = from.ndim() == 2 ? from.shape(1) : 1, step = from.ndim() == 2 ? stride<T>(from, 1) : 1;
  for (Index r = 0; r < rows; ++r, to += columns) {
    const T* row = data<T>(from) + stride<T>(from, 0) * (r < units ? r + units : r < 2 * units ? r - units : r);
    if (step == 1) {
      std::copy_n(row, columns, to);
    } else {
      for (Index i = 0; i < columns; ++i) to[i] = row[i * step];
    }
  }
}

/// The weights of one direction as PyTorch has them, tensors or arrays: w_ih, w_hh and, if there are any, b_ih, b_hh,
/// w_hr.
std::shared_ptr<Weights> make_torch_weights(const std::string& cell, const py::sequence& given, py::handle activations,
                                            const py::object& name) {
  std::vector<py::array> w;
  for (const py::handle item : given)
    w.push_back(py::isinstance<py::array>(item) ? py::reinterpret_borrow<py::array>(item)
                                                : fastrnn::dlpack::array_of(item));
  const bool gru = cell == "gru", projected = w.size() % 2 == 1, biased = w.size() > 3;
  if (w.size() < 2 || w.size() > 5 || w[0].ndim() != 2 || w[1].ndim() != 2)
    throw py::value_error(text(cell, ": there must be w_ih and w_hh, b_ih and b_hh or none, and w_hr or none"));
  const auto make = [&](auto zero) {
    using T = decltype(zero);
    const Index rows = w[0].shape(0);
    for (const py::array& a : w)
      if (!is_native<T>(a))
        throw py::type_error(text(cell, ": all weights must be ", kDtype<T>, ", got ", dtype_text(a)));
    if (gru)
      for (int i = 0; i < 2; ++i) {
        py::array_t<T> swapped({w[i].shape(0), w[i].shape(1)});
        swap_gates<T>(w[i], swapped.mutable_data());
        w[i] = swapped;
      }
    py::object bias = py::none();
    if (biased) {
      for (int i = 2; i < 4; ++i) require_shape(w[i], Shape{rows}, cell, "a bias", "gates * units");
      py::array_t<T> both(gru ? Shape{2, rows} : Shape{rows});
      T* to = both.mutable_data();
      if (gru) {
        swap_gates<T>(w[2], to);
        swap_gates<T>(w[3], to + rows);
      } else {
        for (Index r = 0; r < rows; ++r)
          to[r] = data<T>(w[2])[r * stride<T>(w[2], 0)] + data<T>(w[3])[r * stride<T>(w[3], 0)];
      }
      bias = both;
    }
    const py::object projection = projected ? py::object(transposed(w.back())) : py::none();
    return make_weights(cell, transposed(w[0]), transposed(w[1]), bias, py::none(), projection, py::none(), py::none(),
                        activations, name);
  };
  return is_native<float>(w[0]) ? make(0.0f) : make(0.0);
}

/// pybind11's own refusal would print all arguments, arrays included.
bool flag(py::handle object, const std::string& where, const char* name) {
  if (object.ptr() == Py_True) return true;
  if (object.ptr() == Py_False) return false;
  if (type_name(object) == "bool" || type_name(object) == "bool_")
    return py::cast<bool>(py::bool_(py::reinterpret_borrow<py::object>(object)));
  throw py::type_error(text(where, ": ", name, " must be True or False, got ", type_name(object)));
}

void require_threads(int threads, const std::string& where) {
  if (threads < 0)
    throw py::value_error(text(where, ": threads must be at least 1, or 0 for get_num_threads(), got ", threads));
}

/// Functions take the holder, not a reference: pybind11 refuses it for an object that was made without its constructor.
using Held = std::shared_ptr<Weights>;

/// None, or a list of one array or None per state.
void read_zoneout(py::handle given, const Weights& weights, Options& to) {
  if (given.is_none()) return;
  const py::object items =
      sequence_of(given, static_cast<std::size_t>(weights.traits.states), weights.name, "zoneout_mask");
  for (int s = 0; s < weights.traits.states; ++s) to.zoneout_mask[s] = items[py::int_(s)];
}

py::tuple forward(const Held& weights, py::handle x, py::handle initial_state, py::handle return_sequences,
                  py::handle return_state, py::handle go_backwards, py::handle training, const py::object& mask,
                  py::handle zero_output_for_mask, const py::object& dropout_mask,
                  const py::object& recurrent_dropout_mask, py::handle zoneout_mask, const py::object& embedding,
                  py::handle out, int threads) {
  const std::string& where = weights->name;
  require_threads(threads, where);
  Options options{mask,
                  dropout_mask,
                  recurrent_dropout_mask,
                  embedding,
                  flag(zero_output_for_mask, where, "zero_output_for_mask"),
                  threads};
  read_zoneout(zoneout_mask, *weights, options);
  return weights->forward(as_array(x, where, "x"), initial_state, options,
                          {flag(return_sequences, where, "return_sequences"), flag(return_state, where, "return_state"),
                           flag(go_backwards, where, "go_backwards")},
                          out, flag(training, where, "training"));
}

std::shared_ptr<Tape> restore_tape(const Held& weights, py::handle saved, py::handle x, py::handle initial_state,
                                   bool return_sequences, bool return_state, bool go_backwards, const py::object& mask,
                                   bool zero_output_for_mask, const py::object& dropout_mask,
                                   const py::object& recurrent_dropout_mask, py::handle zoneout_mask,
                                   const py::object& embedding) {
  Options options{mask, dropout_mask, recurrent_dropout_mask, embedding, zero_output_for_mask, 0};
  read_zoneout(zoneout_mask, *weights, options);
  return weights->restore_tape(as_array(saved, weights->name, "saved"), as_array(x, weights->name, "x"), initial_state,
                               options, {return_sequences, return_state, go_backwards});
}

py::tuple backward(py::handle dy, py::handle tape_in, int threads, py::handle with_initial_state) {
  if (!py::isinstance<Tape>(tape_in))
    throw py::type_error(
        text("functional.run_backward: tape must be the Tape that a forward pass returned, got ", type_name(tape_in)));
  Tape& tape = *py::cast<std::shared_ptr<Tape>>(tape_in);
  const std::string where = tape.weights ? tape.weights->name : "functional.run_backward";
  require_threads(threads, where);
  const bool with_states = flag(with_initial_state, where, "with_initial_state");
  if (tape.consumed)
    throw std::runtime_error(tape.weights->name +
                             ".backward: the tape was already used; run forward again for another gradient");
  tape.consumed = true;  // before the GIL is released: another thread must not use it meanwhile
  try {
    py::tuple gradients = tape.weights->backward(dy, tape, threads, with_states);
    tape.saved = no_array();  // the memory
    tape.x = no_array();
    tape.options = Options();
    for (py::object& state : tape.initial_state) state = py::none();
    return gradients;
  } catch (...) {
    tape.consumed = false;  // still good for another try
    throw;
  }
}

template <class T, void (*f)(const T*, T*, Index)>
py::array_t<T> elementwise(const py::array_t<T, py::array::c_style>& x) {
  py::array_t<T> y(shape_of(x));
  f(x.data(), y.mutable_data(), x.size());
  return y;
}

double measure_limit(const std::string& limit, const std::string& dtype, int threads, Index bytes) {
  static const std::map<std::string, fastrnn::Limit> limits{{"flops", fastrnn::Limit::flops},
                                                            {"bandwidth", fastrnn::Limit::bandwidth},
                                                            {"barrier", fastrnn::Limit::barrier},
                                                            {"activation", fastrnn::Limit::activation}};
  const auto found = limits.find(limit);
  if (found == limits.end())
    throw std::invalid_argument(
        text("measure_limit: limit must be flops, bandwidth, barrier or activation, got ", limit));
  if (dtype != "float32" && dtype != "float64")
    throw std::invalid_argument(text("measure_limit: dtype must be float32 or float64, got ", dtype));
  double measured = 0;
  without_gil([&](PyThreadState**) {
    measured = dtype == "float32" ? fastrnn::measure_limit<float>(found->second, threads, bytes)
                                  : fastrnn::measure_limit<double>(found->second, threads, bytes);
  });
  return measured;
}

}  // namespace

/// For those who make one array of several before a call: what the call would check of each, and `out` of a step.
void check_array(py::handle object, const py::dtype& dtype, const Shape& shape, const std::string& where,
                 const std::string& name, const std::string& meaning, bool written) {
  const Label label{name.c_str()};
  const py::array a = as_array(object, where, label);
  const bool single = dtype.equal(py::dtype::of<float>());
  single ? require_dtype<float>(a, where, label) : require_dtype<double>(a, where, label);
  require_shape(a, shape, where, label, meaning.c_str());
  if (written) single ? require_writable<float>(a, where, label) : require_writable<double>(a, where, label);
}

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled kernels of fastrnn. Use fastrnn.functional, which documents them.";
  m.attr("__version__") = fastrnn::version();
  if (kIsaNames.size() > kMostIsas) throw std::logic_error("kMostIsas is less than the instruction sets compiled in");

  py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights",
                                                "The weights of one cell, packed for the kernels when first used.")
      .def(py::init(&make_weights), py::arg("cell"), py::arg("kernel"), py::arg("recurrent_kernel"),
           py::arg("bias") = py::none(), py::kw_only(), py::arg("peephole") = py::none(),
           py::arg("projection") = py::none(), py::arg("cell_norm") = py::none(), py::arg("layer_norm") = py::none(),
           py::arg("activations") = py::none(), py::arg("name") = py::none())
      .def_property_readonly("cell", [](const Held& w) { return w->traits.name; })
      .def_property_readonly("inputs", [](const Held& w) { return w->inputs; })
      .def_property_readonly("units", [](const Held& w) { return w->units; })
      .def_property_readonly("outputs", [](const Held& w) { return w->outputs; })
      .def_property_readonly("name", [](const Held& w) { return w->name; })
      .def_property_readonly("dtype", [](const Held& w) { return w->dtype(); })
      .def_property_readonly("tape_slots", [](const Held& w) { return w->tape_slots(); })
      .def_property_readonly("activations",
                             [](const Held& w) {
                               py::list all;
                               for (const fastrnn::Activation& f : w->activations)
                                 all.append(py::make_tuple(static_cast<int>(f.kind), f.alpha, f.beta, f.clip));
                               return all;
                             })
      .def_property_readonly("arrays", [](const Held& w) {
        py::list arrays;
        arrays.append(w->kernel);
        arrays.append(w->recurrent_kernel);
        if (!w->bias.is_none()) arrays.append(w->bias);
        if (!w->peephole.is_none()) arrays.append(w->peephole);
        if (!w->projection.is_none()) arrays.append(w->projection);
        if (!w->cell_norm.is_none()) arrays.append(w->cell_norm);
        if (!w->layer_norm.is_none()) arrays.append(w->layer_norm);
        return arrays;
      });

  using HeldTape = std::shared_ptr<Tape>;
  py::class_<Tape, HeldTape>(m, "Tape", "What backward needs of one forward pass.")
      .def_property_readonly("consumed", [](const HeldTape& t) { return t->consumed; })
      .def_property_readonly("nbytes", [](const HeldTape& t) { return t->saved ? t->saved.nbytes() : 0; })
      .def_property_readonly("saved", [](const HeldTape& t) { return t->saved ? t->saved : py::array(); })
      .def_property_readonly("mask", [](const HeldTape& t) { return t->options.mask; })
      .def_property_readonly("initial_state",
                             [](const HeldTape& t) {
                               py::list states;
                               for (int s = 0; s < t->weights->traits.states; ++s) states.append(t->initial_state[s]);
                               return states;
                             })
      .def_property_readonly("go_backwards", [](const HeldTape& t) { return t->returns.go_backwards; })
      .def_property_readonly("weights", [](const HeldTape& t) { return std::const_pointer_cast<Weights>(t->weights); });

  // By position: names cost half a microsecond.
  m.def("forward", &forward, py::arg("weights"), py::arg("x"), py::arg("initial_state"), py::arg("return_sequences"),
        py::arg("return_state"), py::arg("go_backwards"), py::arg("training"), py::arg("mask"),
        py::arg("zero_output_for_mask"), py::arg("dropout_mask"), py::arg("recurrent_dropout_mask"),
        py::arg("zoneout_mask"), py::arg("embedding"), py::arg("out"), py::arg("threads"));
  m.def("restore_tape", &restore_tape, py::arg("weights"), py::arg("saved"), py::arg("x"),
        py::arg("initial_state") = py::none(), py::kw_only(), py::arg("return_sequences"), py::arg("return_state"),
        py::arg("go_backwards"), py::arg("mask"), py::arg("zero_output_for_mask"), py::arg("dropout_mask"),
        py::arg("recurrent_dropout_mask"), py::arg("zoneout_mask"), py::arg("embedding"));
  m.def("backward", &backward, py::arg("dy"), py::arg("tape"), py::arg("threads"),
        py::arg("with_initial_state") = py::bool_(true));
  m.def(
      "step",
      [](const Held& w, py::handle x_t, py::handle states, py::handle out) {
        return w->step(as_array(x_t, w->step_name, "x_t"), states, out);
      },
      py::arg("weights"), py::arg("x_t"), py::arg("states") = py::none(), py::arg("out") = py::none());

  m.def("torch_weights", &make_torch_weights, py::arg("cell"), py::arg("weights"), py::arg("activations"),
        py::arg("name"));
  m.def("open_tensors", &fastrnn::dlpack::open, py::arg("tensor"), py::arg("parameter"));
  m.def("plain_tensors", &fastrnn::dlpack::plain, py::arg("tensors"));
  m.def("array_of_tensor", &fastrnn::dlpack::array_of, py::arg("tensor"));
  m.def("places_of_tensors", &fastrnn::dlpack::places, py::arg("tensors"));
  m.def("check_array", &check_array, py::arg("array"), py::arg("dtype"), py::arg("shape"), py::arg("where"),
        py::arg("name"), py::arg("meaning"), py::arg("written") = false);
  m.def("overlap", [](const py::array& a, const py::array& b) { return overlap(a, b); }, py::arg("a"), py::arg("b"));

  m.def("tanh", &elementwise<float, fastrnn::tanh<float>>, py::arg("x").noconvert());
  m.def("tanh", &elementwise<double, fastrnn::tanh<double>>, py::arg("x").noconvert());
  m.def("sigmoid", &elementwise<float, fastrnn::sigmoid<float>>, py::arg("x").noconvert());
  m.def("sigmoid", &elementwise<double, fastrnn::sigmoid<double>>, py::arg("x").noconvert());

  m.def("measure_limit", &measure_limit, py::arg("limit"), py::arg("dtype"), py::arg("threads"), py::arg("bytes") = 1);
  m.def("kernel_calls", [] {
    py::dict calls;
    for (int i = 0; i < fastrnn::kCells; ++i) {
      const Cell cell = static_cast<Cell>(i);
      calls[fastrnn::cell_traits(cell).name] =
          py::dict(py::arg("forward") = fastrnn::kernel_calls(cell, fastrnn::Pass::forward),
                   py::arg("backward") = fastrnn::kernel_calls(cell, fastrnn::Pass::backward));
    }
    return calls;
  });
  m.def("num_threads", &fastrnn::num_threads);
  m.def("set_num_threads", &fastrnn::set_num_threads, py::arg("n"));
  m.def("release_memory", [] { without_gil([](PyThreadState**) { fastrnn::release_memory(); }); });
  m.def("compiled_isas", &fastrnn::compiled_isas);
  m.def("available_isas", &fastrnn::available_isas);
  m.def("isa", &fastrnn::isa);
  m.def("set_isa", &fastrnn::set_isa, py::arg("name"));
  m.def("compiler", &fastrnn::compiler);
  m.def("xla_handlers", [] {
    const auto capsule = [](xla_ffi::Handler* handler) { return py::capsule(reinterpret_cast<void*>(handler)); };
    return py::dict(py::arg("forward") = capsule(&fastrnn::xla::forward),
                    py::arg("backward") = capsule(&fastrnn::xla::backward));
  });
  m.def(
      "register_tensorflow_ops",
      [](const std::string& library) {
        try {
          fastrnn::tensorflow::register_ops(library);
        } catch (const std::runtime_error& e) {
          throw py::import_error(e.what());
        }
      },
      py::arg("library"));
}
