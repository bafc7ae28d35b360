// The handlers that XLA calls, see xla.cpp.
#pragma once

#include "xla_ffi.hpp"

namespace fastrnn::xla {

xla_ffi::Error* forward(xla_ffi::CallFrame* frame);
xla_ffi::Error* backward(xla_ffi::CallFrame* frame);

}  // namespace fastrnn::xla
