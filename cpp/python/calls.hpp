// What the ways into the core have in common: rules of a call that the core leaves to its callers.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastrnn::calls {

using Index = std::int64_t;

/// go_backwards: the sequence begins at its last step, and time runs the other way.
template <class E>
void start_at_last_step(E*& data, Index& time_stride, Index time) {
  if (time == 0) return;
  data += (time - 1) * time_stride;
  time_stride = -time_stride;
}

/// f(b) for the rows of mask [B, T], contiguous, that have no step; null: none has.
template <class F>
void for_each_empty_row(const std::uint8_t* mask, Index batch, Index time, F&& f) {
  if (!mask || time == 0) return;
  for (Index b = 0; b < batch; ++b, mask += time)
    if (std::none_of(mask, mask + time, [](std::uint8_t step) { return step != 0; })) f(b);
}

/// The last output [B, H] of a row without steps is zero, not its initial state; and so is the gradient of that output.
template <class T>
void clear_empty_rows(const std::uint8_t* mask, Index batch, Index time, Index units, T* last) {
  for_each_empty_row(mask, batch, time, [&](Index b) { std::fill_n(last + b * units, units, T(0)); });
}

}  // namespace fastrnn::calls
