// The way into the core from a program that XLA compiled: handlers for the forward and the backward pass, registered by
// fastrnn.jax.
//
// A handler's attributes: `cell`, its name; `activations`, an array of doubles, (code, alpha, beta, clip) for each of
// the three; `operands` and `results`, names in the order of the buffers, with spaces between; `options`, names of what
// is true. See graph_calls.hpp for the names.
#include "xla.hpp"

#include <string>
#include <string_view>

#include "graph_calls.hpp"

namespace fastrnn::xla {
namespace {

using graph_calls::DType;
using graph_calls::Index;

constexpr const char* kName = "fastrnn";

[[noreturn]] void refuse(std::string_view what, const char* why) { graph_calls::refuse(kName, what, why); }

xla_ffi::Error* error(const xla_ffi::Api& api, int code, const char* message) {
  xla_ffi::ErrorArguments arguments{sizeof(xla_ffi::ErrorArguments), nullptr, message,
                                    static_cast<xla_ffi::ErrorCode>(code)};
  return api.error_create(&arguments);
}

class Attributes {
 public:
  explicit Attributes(const xla_ffi::Attributes& attributes) : attributes_(attributes) {
    if (!holds(attributes)) refuse("the attributes", "are laid out in a way that this version does not know");
  }

  graph_calls::Statics statics() const {
    graph_calls::Statics statics{kName, words("cell"), words("operands"), words("results"), words("options"), {}};
    const auto& array = find<xla_ffi::Array>("activations", xla_ffi::kArray);
    if (array.dtype != xla_ffi::kFloat64 || array.size != 4 * kActivations) refuse("activations", "must be 12 doubles");
    const double* value = static_cast<const double*>(array.data);
    for (Activation& activation : statics.activations) {
      graph_calls::read_activation(value[0], value[1], value[2], value[3], statics, activation);
      value += 4;
    }
    return statics;
  }

 private:
  std::string_view words(std::string_view name) const { return view(find<xla_ffi::ByteSpan>(name, xla_ffi::kString)); }
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

class Frame final : public graph_calls::Frame {
 public:
  explicit Frame(const xla_ffi::CallFrame& frame) : arguments_(frame.arguments), results_(frame.results) {
    if (!holds(arguments_) || !holds(results_))
      refuse("the buffers", "are laid out in a way that this version does not know");
  }
  graph_calls::Array operand(Index place) const override { return array(arguments_, place); }
  void* result(Index place, DType dtype, const graph_calls::Shape& shape) const override {
    const graph_calls::Array result = array(results_, place);
    if (result.dtype != dtype || !(result.shape == shape))
      refuse("every result", "must have the dtype and the shape that go with the operands");
    return result.data;
  }
  Index operands() const override { return arguments_.size; }
  Index results() const override { return results_.size; }

 private:
  static graph_calls::Array array(const xla_ffi::Buffers& buffers, Index place) {
    if (buffers.types[place] != xla_ffi::kBuffer) refuse("every operand and result", "must be a buffer");
    const auto& buffer = *static_cast<const xla_ffi::Buffer*>(buffers.items[place]);
    if (!holds(buffer)) refuse("a buffer", "is laid out in a way that this version does not know");
    const DType dtype = buffer.dtype == xla_ffi::kPred      ? DType::boolean
                        : buffer.dtype == xla_ffi::kFloat32 ? DType::float32
                        : buffer.dtype == xla_ffi::kFloat64 ? DType::float64
                                                            : DType::other;
    return {dtype, {buffer.rank, [&](int axis) { return buffer.shape[axis]; }}, buffer.data};
  }
  const xla_ffi::Buffers& arguments_;
  const xla_ffi::Buffers& results_;
};

/// Answer XLA's question what a handler is. `api` may be null.
void describe(const xla_ffi::Api* api, xla_ffi::Metadata& metadata) {
  // Minor versions differ in fields at the end of structs, which are looked for when they are needed. So any will do.
  const int minor = api ? api->version.minor_version : xla_ffi::kLeastMinorVersion;
  metadata.version = {sizeof(xla_ffi::Version), nullptr, xla_ffi::kMajorVersion, minor};
  metadata.traits = 0;
  if (holds(metadata)) metadata.state_type = 0;
}

/// Answer XLA's question what the handler is, or make the call; no exception leaves it.
xla_ffi::Error* handle(xla_ffi::CallFrame* frame,
                       void (*pass)(const graph_calls::Statics&, const graph_calls::Frame&)) {
  if (frame->extensions && frame->extensions->type == xla_ffi::kMetadataExtension) {
    describe(frame->api, *reinterpret_cast<const xla_ffi::MetadataExtension*>(frame->extensions)->metadata);
    return nullptr;
  }
  const xla_ffi::Api& api = *frame->api;
  if (api.version.major_version != xla_ffi::kMajorVersion || !holds(*frame))
    return error(api, graph_calls::kFailedPrecondition,
                 "fastrnn: XLA's interface for handlers must be of major version 0; install a jaxlib that has it, or a "
                 "later fastrnn");
  if (frame->stage != xla_ffi::kExecute)
    return error(api, graph_calls::kInvalidArgument, "fastrnn: the handler must be registered for execution alone");
  xla_ffi::Error* failed = nullptr;
  graph_calls::report_errors([&] { pass(Attributes(frame->attributes).statics(), Frame(*frame)); },
                             [&](int code, const char* message) { failed = error(api, code, message); });
  return failed;
}

}  // namespace

xla_ffi::Error* forward(xla_ffi::CallFrame* frame) { return handle(frame, graph_calls::forward); }
xla_ffi::Error* backward(xla_ffi::CallFrame* frame) { return handle(frame, graph_calls::backward); }

}  // namespace fastrnn::xla
