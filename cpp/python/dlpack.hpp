// PyTorch's tensors as arrays on the same memory, by the C functions that their class publishes for this (DLPack's
// exchange API, __dlpack_c_exchange_api__): much less work than a call of Tensor.numpy. The structs are DLPack's, major
// version 1.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

namespace fastrnn::dlpack {

namespace py = pybind11;

struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t *shape, *strides;  // in elements
  std::uint64_t byte_offset;
};
constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kFloat = 2, kBool = 6;

struct Functions {
  struct Header {
    std::uint32_t major, minor;
    Header* previous;
  } header;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*from_object)(void* object, Tensor* out);  // -1: there is an exception; the memory stays the object's
  void* current_stream;
};

/// Those of torch.Tensor, once `open` got them; null before, and where PyTorch is too old.
inline const Functions* functions = nullptr;
inline PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

/// Whether there are such functions. The classes live as long as the process.
inline bool open(py::type tensor, py::type parameter) {
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return false;
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  auto* header = static_cast<Functions::Header*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!header) throw py::error_already_set();
  while (header && header->major != 1) header = header->previous;
  if (!header) return false;
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  functions = reinterpret_cast<const Functions*>(header);
  return true;
}

/// Whether there are elements without memory, of a storage that was emptied or that stands for zeros.
inline bool hollow(const Tensor& t) {
  if (t.data) return false;
  for (std::int32_t i = 0; i < t.dimensions; ++i)
    if (t.shape[i] == 0) return false;
  return true;
}

inline char* memory(const Tensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

/// Whether all are dense tensors in the processor's memory, of one dtype, float32 or float64, of no class of one's own,
/// and not negated lazily; or None.
inline bool plain(const py::tuple& tensors) {
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  std::uint8_t bits = 0;
  for (const py::handle item : tensors) {
    if (item.is_none()) continue;
    if (Py_TYPE(item.ptr()) != tensor_type && Py_TYPE(item.ptr()) != parameter_type) return false;
    Tensor t;
    if (functions->from_object(item.ptr(), &t) != 0) {
      PyErr_Clear();  // sparse, without memory ...: what the caller says of it is clearer
      return false;
    }
    if (t.device.type != kCpu || t.dtype.code != kFloat || t.dtype.lanes != 1 || hollow(t)) return false;
    if (bits == 0) bits = t.dtype.bits;
    if (t.dtype.bits != bits || (bits != 32 && bits != 64)) return false;
    const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(item.ptr(), is_neg));
    if (!negated) throw py::error_already_set();
    if (negated.ptr() != Py_False) return false;
  }
  return true;
}

/// An array on the memory of a tensor of float32, float64 or bool, which it keeps alive. The tensor's storage may be
/// given other memory later: see `places`.
inline py::array array_of(py::handle tensor) {
  Tensor t;
  if (functions->from_object(tensor.ptr(), &t) != 0) throw py::error_already_set();
  const bool known = t.dtype.lanes == 1 && ((t.dtype.code == kFloat && (t.dtype.bits == 32 || t.dtype.bits == 64)) ||
                                            (t.dtype.code == kBool && t.dtype.bits == 8));
  if (t.device.type != kCpu || !known)
    throw py::type_error("dlpack: a tensor must be float32, float64 or bool, on the CPU");
  const py::dtype dtype = t.dtype.code == kBool ? py::dtype::of<bool>()
                          : t.dtype.bits == 32  ? py::dtype::of<float>()
                                                : py::dtype::of<double>();
  if (hollow(t)) throw py::value_error("dlpack: a tensor must have memory, got one whose storage was emptied");
  py::array::ShapeContainer shape(t.shape, t.shape + t.dimensions);
  py::array::StridesContainer strides(t.strides, t.strides + t.dimensions);
  for (auto& stride : *strides) stride *= t.dtype.bits / 8;
  return py::array(dtype, std::move(shape), std::move(strides), memory(t), tensor);
}

/// Where the memory of each tensor lies and how it is read: while these bytes are the same, arrays made before hold.
inline py::bytes places(const py::tuple& tensors) {
  std::string found;
  const auto add = [&](const void* from, std::size_t size) { found.append(static_cast<const char*>(from), size); };
  for (const py::handle item : tensors) {
    Tensor t{};
    if (!item.is_none() && functions->from_object(item.ptr(), &t) != 0) {
      PyErr_Clear();
      t = {};
    }
    const char* const begin = memory(t);
    add(&begin, sizeof begin);
    add(&t.dtype, sizeof t.dtype);
    add(&t.dimensions, sizeof t.dimensions);
    for (const std::int64_t* numbers : {t.shape, t.strides})
      if (numbers) add(numbers, static_cast<std::size_t>(t.dimensions) * sizeof *numbers);
  }
  return py::bytes(found);
}

}  // namespace fastrnn::dlpack
