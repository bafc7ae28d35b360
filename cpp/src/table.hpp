// What crosses the boundary between the library and the objects compiled per instruction set: plain structs, pointers
// and integers. Each such object exports one function, fastrnn::<isa>::kernels().
#pragma once

#include "fastrnn/fastrnn.hpp"

namespace fastrnn {

/// The most rows times steps of a call that may read weights where they lie.
constexpr int kMostDirectRows = 8;

/// A cell and its packed weights, as the kernels see them.
template <class T>
struct PackedView {
  Cell cell;
  std::int64_t inputs, units, outputs;
  const T* data;  ///< 64-byte aligned
  Activation activations[kActivations];
  MatrixView<T> layer_norm;            ///< data null: there is none; the values are in the packed weights
  const Weights<T>* direct = nullptr;  ///< the weights where they lie, if they are not packed
};

/// What a call works with. No result depends on it.
struct Processors {
  int threads;
  std::int64_t cached;  ///< bytes of weights that stay in the second-level cache of each, if it has one of its own
};

template <class T>
struct KernelTable {
  int (*tape_slots)(Cell cell, const Activation* activations);
  std::int64_t (*packed_size)(const Weights<T>& weights, Pass pass);  ///< in bytes
  void (*pack)(const Weights<T>& weights, Pass pass, T* packed, int threads);
  /// Bytes of workspace that a call needs with these processors.
  std::int64_t (*forward_workspace)(const PackedView<T>& weights, const Forward<T>& call, const Processors& with);
  std::int64_t (*backward_workspace)(const PackedView<T>& weights, const Backward<T>& call, const Processors& with);
  bool (*forward)(const PackedView<T>& weights, const Forward<T>& call, const Processors& with, void* workspace);
  bool (*backward)(const PackedView<T>& weights, const Backward<T>& call, const Processors& with, void* workspace);
  void (*tanh)(const T* x, T* y, std::int64_t n);
  void (*sigmoid)(const T* x, T* y, std::int64_t n);
  double (*measure_limit)(Limit limit, std::int64_t bytes, int threads, T* memory);  ///< memory: threads * bytes
};

struct Kernels {
  const char* isa;
  CellTraits (*cell_traits)(Cell cell);
  KernelTable<float> float32;
  KernelTable<double> float64;
};

}  // namespace fastrnn
