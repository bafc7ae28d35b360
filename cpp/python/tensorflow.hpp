// The operations that TensorFlow calls, see tensorflow.cpp.
#pragma once

#include <string>

namespace fastrnn::tensorflow {

/// Register them with the TensorFlow whose library this process has loaded from the path; the second time does nothing.
/// Throws std::runtime_error, with what is missing.
void register_ops(const std::string& library);

}  // namespace fastrnn::tensorflow
