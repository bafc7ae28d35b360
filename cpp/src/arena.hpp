// One allocation, handed out in pieces.
#pragma once

#include "gemm.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// Hands out aligned pieces of one allocation; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(Index elements) {
    const Index begin = size_;
    size_ += ceil_div(elements * Index(sizeof(T)), 64) * 64;
    return base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  Index size() const { return size_; }

 private:
  char* base_;
  Index size_ = 0;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
