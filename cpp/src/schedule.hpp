// Which step of which row of the batch is computed when. Without a mask: all of them, as the caller counts them. With
// one, masked steps are left out as if they were not there: the k-th computed step of a row is its k-th unmasked one,
// and the rows are put in the order of falling numbers of steps, so that step k concerns the first rows of any range of
// them. Below, "row" and "step" are those of this order, where nothing else is said.
#pragma once

#include "arena.hpp"
#include "gemm.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

class Schedule {
 public:
  template <class T>
  Schedule(const Call<T>& call, Arena& arena)
      : batch_(call.batch),
        time_(call.time),
        masked_(call.mask != nullptr),
        fill_(!call.masked_output_is_zero),
        row_(arena.take<Small>(masked_ ? batch_ : 0)),
        length_(arena.take<Small>(masked_ ? batch_ : 0)),
        active_(arena.take<Small>(masked_ ? time_ + 1 : 0)),
        step_(arena.take<Small>(masked_ ? batch_ * time_ : 0)) {}

  /// Read the mask.
  template <class T>
  void prepare(const Call<T>& call) {
    if (!masked_) return;
    // active_[n]: how many rows have n steps, then more than n, which is also where those that have n begin.
    for (Index k = 0; k <= time_; ++k) active_[k] = 0;
    const auto computed = [&](Index b, Index t) {
      return call.mask[b * call.mask_batch_stride + t * call.mask_time_stride] != 0;
    };
    const auto count = [&](Index b) {
      Index n = 0;
      for (Index t = 0; t < time_; ++t) n += computed(b, t);
      return n;
    };
    for (Index b = 0; b < batch_; ++b) ++active_[count(b)];
    Small longer = 0;
    for (Index n = time_; n >= 0; --n) {
      const Small these = active_[n];
      active_[n] = longer;
      longer += these;
    }
    for (Index b = 0; b < batch_; ++b) {
      const Index n = count(b), r = active_[n]++;
      row_[r] = static_cast<Small>(b);
      length_[r] = static_cast<Small>(n);
      Small* step = step_ + r * time_;
      for (Index t = 0; t < time_; ++t)
        if (computed(b, t)) *step++ = static_cast<Small>(t);
    }
    // Each entry has moved on to the end of its rows: those with at least n steps.
    for (Index k = 0; k < time_; ++k) active_[k] = active_[k + 1];
  }

  bool masked() const { return masked_; }
  Index row(Index r) const { return masked_ ? row_[r] : r; }                         ///< the caller's
  Index step(Index r, Index k) const { return masked_ ? step_[r * time_ + k] : k; }  ///< the caller's
  Index length(Index r) const { return masked_ ? length_[r] : time_; }               ///< steps of a row
  /// Steps of the longest row of a range.
  Index steps(Range rows) const { return rows.size() > 0 ? length(rows.begin) : 0; }
  /// How many rows of a range have a step k: the first of them.
  Index active(Range rows, Index k) const {
    return masked_ ? larger(0, smaller(active_[k] - rows.begin, rows.size())) : rows.size();
  }
  /// How many of the caller's outputs have the value of step k of row r.
  Index outputs(Index r, Index k) const {
    if (!masked_ || !fill_) return 1;
    return (k + 1 < length_[r] ? step_[r * time_ + k + 1] : time_) - step_[r * time_ + k];
  }
  /// Share `index` of `parts` of all rows: contiguous, with as even a number of steps as may be.
  Range share(Index index, Index parts) const {
    if (!masked_) return part(batch_, index, parts);
    Index total = 0;
    for (Index r = 0; r < batch_; ++r) total += work(r);
    const auto boundary = [&](Index i) {
      Index sum = 0, r = 0;
      while (r < batch_ && (sum + work(r) / 2) * parts < total * i) sum += work(r++);
      return i == parts ? batch_ : r;
    };
    return {boundary(index), boundary(index + 1)};
  }

 private:
  using Small = std::int32_t;
  Index work(Index r) const { return length_[r] + 1; }

  const Index batch_, time_;
  const bool masked_, fill_;
  Small* const row_;
  Small* const length_;
  Small* const active_;
  Small* const step_;
};

/// A matrix whose rows are contiguous.
template <class T>
struct Rows {
  T* data = nullptr;
  Index stride = 0;
  T* operator[](Index row) const { return data + row * stride; }
};

/// The rows of step k of one of the caller's arrays [B, T, n].
template <class T>
class CallRows {
 public:
  CallRows() = default;
  CallRows(const Schedule& schedule, T* data, Index batch_stride, Index time_stride, Index k)
      : data_(data && !schedule.masked() ? data + k * time_stride : data),
        batch_stride_(batch_stride),
        masked_(schedule.masked() ? &schedule : nullptr),
        time_stride_(time_stride),
        k_(k) {}

  explicit operator bool() const { return data_ != nullptr; }
  FASTRNN_INLINE T* operator[](Index r) const {
    if (masked_) return data_ + masked_->row(r) * batch_stride_ + masked_->step(r, k_) * time_stride_;
    return data_ + r * batch_stride_;
  }
  /// f(where) for each of the caller's outputs that have the value of this step of row r.
  template <class F>
  FASTRNN_INLINE void for_each_output(Index r, F&& f) const {
    T* at = (*this)[r];
    f(at);
    if (masked_)
      for (Index n = masked_->outputs(r, k_); n > 1; --n) f(at += time_stride_);
  }

 private:
  T* data_ = nullptr;
  Index batch_stride_ = 0;
  const Schedule* masked_ = nullptr;  ///< null: all steps of all rows are computed
  Index time_stride_ = 0, k_ = 0;
};

/// The inputs of step k: rows of the caller's x, or of the embedding by the caller's ids.
template <class T>
class InputRows {
 public:
  InputRows(const Schedule& schedule, const Call<T>& call, Index inputs, Index k)
      : x_(schedule, call.x, call.x_batch_stride, call.x_time_stride, k),
        ids_(schedule, call.ids, call.x_batch_stride, call.x_time_stride, k),
        embedding_(call.embedding),
        inputs_(inputs) {}

  FASTRNN_INLINE const T* operator[](Index r) const { return ids_ ? embedding_ + *ids_[r] * inputs_ : x_[r]; }

 private:
  CallRows<const T> x_;
  CallRows<const Index> ids_;
  const T* embedding_;
  Index inputs_;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
