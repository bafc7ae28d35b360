// The binary interface through which XLA calls functions of other libraries, "XLA FFI", as far as fastrnn uses it. It
// is stated here so that fastrnn builds without XLA's headers; tests/bridges/test_jax.py compares it with those of
// jaxlib.
//
// XLA passes one CallFrame. Every struct begins with its size in bytes and a list of extensions, so that fields can be
// added at the end: what is declared here is a beginning of what XLA passes, and `holds` tells whether it is all there.
// Other changes raise the major version, which every call frame gives through its `api`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xla_ffi {

constexpr int kMajorVersion = 0, kLeastMinorVersion = 1;  ///< of the interface stated here

enum ExtensionType : int { kMetadataExtension = 1 };
struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct Version {
  std::size_t struct_size;
  Extension* extensions;
  int major_version, minor_version;
};

// ---- Errors: a handler returns null, or what Api::error_create returned, which XLA then owns

struct Error;
enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kFailedPrecondition = 9, kInternal = 13 };
struct ErrorArguments {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;  ///< copied by XLA
  ErrorCode code;
};

struct Api {
  std::size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*error_create)(ErrorArguments*);
};

// ---- Arguments and results: pointers to Buffer; attributes: pointers to ByteSpan, Array or Scalar, sorted by name

enum DataType : int { kPred = 1, kFloat32 = 11, kFloat64 = 12 };
enum BufferType : int { kBuffer = 1 };
enum AttributeType : int { kArray = 1, kString = 4 };

struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  DataType dtype;
  void* data;  ///< row-major
  std::int64_t rank;
  std::int64_t* shape;  ///< [rank]
};

struct ByteSpan {
  const char* data;  ///< not terminated
  std::size_t size;
};

struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};

/// XLA has two structs of this form, of the arguments and of the results.
struct Buffers {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  BufferType* types;  ///< [size]
  void** items;       ///< [size]
};

struct Attributes {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  AttributeType* types;  ///< [size]
  ByteSpan** names;      ///< [size]
  void** items;          ///< [size]
};

// ---- Calls

enum Stage : int { kExecute = 3 };

struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Buffers arguments, results;
  Attributes attributes;
};

/// The first extension of a call frame that asks a handler what it is, instead of calling it.
struct Metadata {
  std::size_t struct_size;
  Version version;          ///< written: what the handler was made for
  std::uint32_t traits;     ///< written: 0
  std::int64_t state_type;  ///< written where there is one: 0, no state
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

using Handler = Error*(CallFrame*);

/// Whether the struct that XLA passed has all fields that are declared here.
template <class Struct>
bool holds(const Struct& s) {
  return s.struct_size >= sizeof(Struct);
}

}  // namespace xla_ffi
