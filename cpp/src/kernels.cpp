// All kernels for one instruction set. Compiled once for each, with FASTRNN_ISA its name, the compiler's flags for it
// and Eigen's namespace renamed after it, so that no two of these objects share a symbol but the one function they
// export.
#include "cells/list.hpp"
#include "limits.hpp"
#include "sequence.hpp"

#define FASTRNN_STRING_OF(x) #x
#define FASTRNN_STRING(x) FASTRNN_STRING_OF(x)

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// Call f(CellStruct{}) for the cell.
template <class F>
auto with_cell(Cell cell, F&& f) {
  switch (cell) {
#define FASTRNN_CASE(name, Struct) \
  case Cell::name:                 \
    return f(Struct{});
    FASTRNN_FOR_EACH_CELL(FASTRNN_CASE)
#undef FASTRNN_CASE
  }
  __builtin_unreachable();
}

CellTraits traits(Cell cell) {
  return with_cell(cell, [](auto c) { return decltype(c)::traits; });
}

template <template <class, class> class Pass_, class T, class Call>
Index workspace(const PackedView<T>& weights, const Call& call, int threads) {
  return with_cell(weights.cell,
                   [&](auto c) { return Pass_<decltype(c), T>(weights, call, threads, nullptr).workspace(); });
}

template <template <class, class> class Pass_, class T, class Call>
bool run(const PackedView<T>& weights, const Call& call, int threads, void* memory) {
  return with_cell(weights.cell, [&](auto c) { return Pass_<decltype(c), T>(weights, call, threads, memory).run(); });
}

template <class T>
Index packed_size(Cell cell, Pass pass, Index inputs, Index units) {
  return with_cell(cell, [&](auto c) { return Panels<decltype(c), T>(pass, inputs, units, nullptr).size; });
}

template <class T>
void pack_weights(const Weights<T>& weights, Pass pass, T* packed, int threads) {
  with_cell(weights.cell, [&](auto c) { pack<decltype(c), T>(weights, pass, packed, threads); });
}

template <class T, class F>
void map(const T* x, T* y, Index n, F f) {
  using V = Vec<T>;
  for (Index i = 0; i < n; i += kLanes<V>) store(y + i, f(load<V>(x + i, n - i)), n - i);
}

template <class T>
constexpr KernelTable<T> table() {
  return {packed_size<T>,
          pack_weights<T>,
          workspace<ForwardPass, T, Forward<T>>,
          workspace<BackwardPass, T, Backward<T>>,
          run<ForwardPass, T, Forward<T>>,
          run<BackwardPass, T, Backward<T>>,
          [](const T* x, T* y, Index n) { map(x, y, n, [](const auto& v) { return tanh(v); }); },
          [](const T* x, T* y, Index n) { map(x, y, n, [](const auto& v) { return sigmoid(v); }); },
          measure_limit<T>};
}

constexpr Kernels kKernels{FASTRNN_STRING(FASTRNN_ISA), traits, table<float>(), table<double>()};

}  // namespace

const Kernels* kernels();
const Kernels* kernels() { return &kKernels; }

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
