// The way into the core from TensorFlow, eager and in graphs: the operations FastrnnForward and FastrnnBackward,
// registered through TensorFlow's C API and called by fastrnn.keras.
//
// Their attributes: `cell`, its name; `activations`, the bits of 12 doubles as integers, (code, alpha, beta, clip) for
// each of the three (TensorFlow's own lists of numbers are of float32); `operand_names` and `result_names`, names in
// the order of the inputs and outputs, with spaces between; `options`, names of what is true; `layer`, what error
// messages begin with. See graph_calls.hpp for the names.
#include "tensorflow.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "graph_calls.hpp"
#include "tf_c.hpp"

namespace fastrnn::tensorflow {
namespace {

using graph_calls::DType;
using graph_calls::Index;

tf_c::Api api;  ///< filled before TensorFlow can call

/// What TensorFlow's functions report errors with.
class Status {
 public:
  Status() : status_(api.NewStatus()) {}
  ~Status() { api.DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  operator tf_c::Status*() { return status_; }
  void set(int code, const char* message) { api.SetStatus(status_, static_cast<tf_c::Code>(code), message); }
  /// Throw what a function reported.
  void check() const {
    if (api.GetCode(status_) != tf_c::kOk)
      throw graph_calls::Failure(api.GetCode(status_), std::string("fastrnn: ") + api.Message(status_));
  }

 private:
  tf_c::Status* const status_;
};

struct DeleteTensor {
  void operator()(tf_c::Tensor* tensor) const { api.DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<tf_c::Tensor, DeleteTensor>;

/// The attributes of a node.
struct Kernel {
  explicit Kernel(tf_c::OpKernelConstruction* construction)
      : name(text(construction, "layer")),
        cell(text(construction, "cell")),
        operands(text(construction, "operand_names")),
        results(text(construction, "result_names")),
        options(text(construction, "options")),
        statics{name, cell, operands, results, options, {}} {
    Status status;
    constexpr int kNumbers = 4 * kActivations;
    std::int64_t bits[kNumbers];
    if (size(construction, "activations").first != kNumbers)
      graph_calls::refuse(name, "activations", "must be 12 numbers");
    api.OpKernelConstruction_GetAttrInt64List(construction, "activations", bits, kNumbers, status);
    status.check();
    double numbers[kNumbers];
    std::memcpy(numbers, bits, sizeof bits);
    const double* n = numbers;
    for (Activation& activation : statics.activations) {
      graph_calls::read_activation(n[0], n[1], n[2], n[3], statics, activation);
      n += 4;
    }
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  const std::string name, cell, operands, results, options;
  graph_calls::Statics statics;  ///< reads the strings

 private:
  /// Of a list, and of a string.
  static std::pair<std::int32_t, std::int32_t> size(tf_c::OpKernelConstruction* construction, const char* attribute) {
    Status status;
    std::int32_t list = 0, total = 0;
    api.OpKernelConstruction_GetAttrSize(construction, attribute, &list, &total, status);
    status.check();
    return {list, total};
  }
  static std::string text(tf_c::OpKernelConstruction* construction, const char* attribute) {
    Status status;
    std::string value(std::max(size(construction, attribute).second, 0), ' ');
    api.OpKernelConstruction_GetAttrString(construction, attribute, value.data(), value.size(), status);
    status.check();
    return value;
  }
};

class Frame final : public graph_calls::Frame {
 public:
  explicit Frame(tf_c::OpKernelContext* context)
      : context_(context), inputs_(api.NumInputs(context)), outputs_(api.NumOutputs(context)) {}

  graph_calls::Array operand(Index place) const override {
    Tensor& tensor = inputs_[place];
    if (!tensor) {
      Status status;
      tf_c::Tensor* input = nullptr;
      api.GetInput(context_, static_cast<int>(place), &input, status);
      tensor.reset(input);
      status.check();
    }
    const tf_c::DataType type = api.TensorType(tensor.get());
    const DType dtype = type == tf_c::kBool     ? DType::boolean
                        : type == tf_c::kFloat  ? DType::float32
                        : type == tf_c::kDouble ? DType::float64
                                                : DType::other;
    const graph_calls::Shape shape(api.NumDims(tensor.get()), [&](int axis) { return api.Dim(tensor.get(), axis); });
    return {dtype, shape, api.TensorData(tensor.get())};
  }
  void* result(Index place, DType dtype, const graph_calls::Shape& shape) const override {
    Status status;
    Index bytes = dtype == DType::float32 ? sizeof(float) : sizeof(double);
    for (int axis = 0; axis < shape.rank; ++axis) bytes *= shape[axis];
    outputs_[place].reset(api.AllocateOutput(context_, static_cast<int>(place),
                                             dtype == DType::float32 ? tf_c::kFloat : tf_c::kDouble, shape.sizes,
                                             static_cast<int>(shape.rank), static_cast<std::size_t>(bytes), status));
    status.check();
    return api.TensorData(outputs_[place].get());
  }
  Index operands() const override { return static_cast<Index>(inputs_.size()); }
  Index results() const override { return static_cast<Index>(outputs_.size()); }

  void require_all_results(const Kernel& kernel) const {
    if (!std::all_of(outputs_.begin(), outputs_.end(), [](const Tensor& output) { return bool(output); }))
      graph_calls::refuse(kernel.name, "every result", "must have a name of its own that the pass knows");
  }

 private:
  tf_c::OpKernelContext* const context_;
  mutable std::vector<Tensor> inputs_, outputs_;  ///< null: not asked for yet
};

void set_unknown_shapes(tf_c::ShapeInferenceContext* context, tf_c::Status* status) {
  api.ShapeInferenceContextSetUnknownShape(context, status);
}

void* create(tf_c::OpKernelConstruction* construction) {
  void* kernel = nullptr;
  graph_calls::report_errors([&] { kernel = new Kernel(construction); },
                             [&](int code, const char* message) {
                               Status status;
                               status.set(code, message);
                               api.OpKernelConstruction_Failure(construction, status);
                             });
  return kernel;
}

template <void (*pass)(const graph_calls::Statics&, const graph_calls::Frame&)>
void compute(void* data, tf_c::OpKernelContext* context) {
  graph_calls::report_errors(
      [&] {
        const Kernel& kernel = *static_cast<const Kernel*>(data);
        const Frame frame(context);
        pass(kernel.statics, frame);
        frame.require_all_results(kernel);
      },
      [&](int code, const char* message) {
        Status status;
        status.set(code, message);
        api.OpKernelContext_Failure(context, status);
      });
}

void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

void find_functions(const std::string& library) {
  // The library is in use, so that it stays loaded when the handle is closed.
  void* const handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) throw std::runtime_error("this process has not loaded TensorFlow from " + library);
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
    if (!function) missing += std::string(missing.empty() ? "" : ", ") + name;
  };
#define FASTRNN_FIND(Result, name, parameters) find(api.name, "TF_" #name);
  FASTRNN_TF_FUNCTIONS(FASTRNN_FIND)
#undef FASTRNN_FIND
  dlclose(handle);
  if (!missing.empty()) throw std::runtime_error(library + " lacks " + missing);
}

void register_op(const char* name, tf_c::ComputeFunction* compute) {
  Status status;
  tf_c::OpDefinitionBuilder* const op = api.NewOpDefinitionBuilder(name);
  api.OpDefinitionBuilderAddInput(op, "operands: operand_types");
  api.OpDefinitionBuilderAddOutput(op, "results: count * dtype");
  for (const char* attribute :
       {"operand_types: list({float, double, bool}) >= 1", "count: int >= 1", "dtype: {float, double}", "cell: string",
        "activations: list(int)", "operand_names: string", "result_names: string", "options: string", "layer: string"})
    api.OpDefinitionBuilderAddAttr(op, attribute);
  api.OpDefinitionBuilderSetShapeInferenceFunction(op, set_unknown_shapes);
  api.RegisterOpDefinition(op, status);
  status.check();
  api.RegisterKernelBuilder(name, api.NewKernelBuilder(name, "CPU", create, compute, destroy), status);
  status.check();
}

}  // namespace

void register_ops(const std::string& library) {
  static std::mutex mutex;
  static bool registered = false;
  const std::lock_guard<std::mutex> lock(mutex);
  if (registered) return;
  find_functions(library);
  register_op("FastrnnForward", compute<graph_calls::forward>);
  register_op("FastrnnBackward", compute<graph_calls::backward>);
  registered = true;
}

}  // namespace fastrnn::tensorflow
