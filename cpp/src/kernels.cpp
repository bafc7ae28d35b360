// All kernels for one instruction set. Compiled once for each, with FASTRNN_ISA its name, the compiler's flags for it
// and Eigen's namespace renamed after it, so that no two of these objects share a symbol but the one function they
// export.
#include "backward.hpp"
#include "cells/list.hpp"
#include "forward.hpp"
#include "limits.hpp"

#define FASTRNN_STRING_OF(x) #x
#define FASTRNN_STRING(x) FASTRNN_STRING_OF(x)

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

CellTraits traits(Cell cell) { return cell_info<float>(cell, true).traits; }

template <class T>
int tape_slots(Cell cell, const Activation* activations) {
  return cell_info<T>(cell, activations).traits.tape_slots;
}

template <template <class> class Pass_, class T, class Call>
Index workspace(const PackedView<T>& weights, const Call& call, const Processors& with) {
  return Pass_<T>(weights, call, with, nullptr).workspace();
}

template <template <class> class Pass_, class T, class Call>
bool run(const PackedView<T>& weights, const Call& call, const Processors& with, void* memory) {
  return Pass_<T>(weights, call, with, memory).run();
}

template <class T>
Index packed_size(const Weights<T>& w, Pass pass) {
  const CellInfo<T>& cell = cell_info<T>(w.cell, true);
  return Panels<T>(cell, pass, sizes_of(cell.traits, w), nullptr).size;
}

template <class T>
void pack_weights(const Weights<T>& weights, Pass pass, T* packed, int threads) {
  pack(cell_info<T>(weights.cell, true), weights, pass, packed, threads);
}

template <class T, class F>
void map(const T* x, T* y, Index n, F f) {
  using V = Vec<T>;
  for (Index i = 0; i < n; i += kLanes<V>) store(y + i, f(load<V>(x + i, n - i)), n - i);
}

template <class T>
constexpr KernelTable<T> table() {
  return {tape_slots<T>,
          packed_size<T>,
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
