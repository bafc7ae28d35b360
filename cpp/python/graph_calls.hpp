// Calls of the core by frameworks that run graphs, XLA and TensorFlow, on their threads, without the GIL and without
// Python: arrays by name in, arrays by name out.
//
// Names are those of fastrnn.functional, and
//
//     initial_h initial_c    the initial states [B, H]                    h c     the final ones
//     zoneout_h zoneout_c    the zoneout masks [B, T, H] of the states
//     last                   the last output [B, H]                       y       all of them [B, T, H]
//     tape                   [B, T, slots, H]                             d...    the gradient of what follows the d
//
// An operand or result that is not named is none. What the Python modules pass is checked there, with advice; here so
// that no call reads or writes beside an array.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fastrnn/fastrnn.hpp"

namespace fastrnn::graph_calls {

using Index = std::int64_t;

enum class DType { boolean, float32, float64, other };

constexpr int kMaxRank = 4;
struct Shape {
  Shape() = default;
  Shape(std::initializer_list<Index> sizes);
  template <class Size>
  Shape(Index rank, Size&& size);  ///< size(axis); a rank above kMaxRank is kept as the rank alone
  Index operator[](int axis) const { return sizes[axis]; }
  bool operator==(const Shape& other) const;

  Index rank = 0;
  Index sizes[kMaxRank] = {};
};

/// An array of the framework, row-major.
struct Array {
  DType dtype;
  Shape shape;
  void* data;
};

/// What of a call is no array.
struct Statics {
  std::string_view name;               ///< what error messages begin with
  std::string_view cell;               ///< its name
  std::string_view operands, results;  ///< names in the order of the framework's lists, with spaces between
  std::string_view options;            ///< names of what is true
  Activation activations[kActivations];
};

/// Set an activation to a formula by its code; throws if there is none.
void read_activation(double code, double alpha, double beta, double clip, const Statics& statics, Activation& to);

/// The arrays of one call, by their places in the framework's lists. What is thrown here becomes the call's error.
class Frame {
 public:
  virtual Array operand(Index place) const = 0;
  /// Where to write a result of this type and shape, asked for once; throws if the framework made one that differs.
  virtual void* result(Index place, DType dtype, const Shape& shape) const = 0;
  virtual Index operands() const = 0;  ///< how many there are
  virtual Index results() const = 0;

 protected:
  ~Frame() = default;
};

void forward(const Statics& statics, const Frame& frame);
void backward(const Statics& statics, const Frame& frame);

[[noreturn]] void refuse(std::string_view name, std::string_view what, std::string_view why);

/// The codes of errors that XLA and TensorFlow have in common.
enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kFailedPrecondition = 9, kInternal = 13 };

/// An error that a framework reported, with its code.
struct Failure : std::runtime_error {
  Failure(int code, const std::string& message) : std::runtime_error(message), code(code) {}
  int code;
};

/// f(), and report(code, message) of what it throws.
void report_errors(const std::function<void()>& f, const std::function<void(int, const char*)>& report) noexcept;

template <class Size>
Shape::Shape(Index rank, Size&& size) : rank(rank) {
  for (int axis = 0; axis < rank && axis < kMaxRank; ++axis) sizes[axis] = size(axis);
}

}  // namespace fastrnn::graph_calls
