// The binary interface through which TensorFlow takes operations and kernels of other libraries, its C API, as far as
// fastrnn uses it: the functions' types, and numbers. It is stated here so that fastrnn builds without TensorFlow's
// headers and links nothing of it; tests/bridges/test_tensorflow.py compares it with those of TensorFlow. What
// pointers lead to is TensorFlow's alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tf_c {

struct Status;
struct Tensor;
struct OpDefinitionBuilder;
struct ShapeInferenceContext;
struct KernelBuilder;
struct OpKernelConstruction;
struct OpKernelContext;

enum DataType : int { kFloat = 1, kDouble = 2, kBool = 10 };
enum Code : int { kOk = 0 };  ///< the others that are used: graph_calls::ErrorCode

using ShapeFunction = void(ShapeInferenceContext*, Status*);
using CreateFunction = void*(OpKernelConstruction*);
using ComputeFunction = void(void*, OpKernelContext*);
using DeleteFunction = void(void*);

/// F(result, name without TF_, parameters) for each function.
#define FASTRNN_TF_FUNCTIONS(F)                                                                                   \
  F(Status*, NewStatus, ())                                                                                       \
  F(void, DeleteStatus, (Status*))                                                                                \
  F(void, SetStatus, (Status*, Code, const char* message))                                                        \
  F(Code, GetCode, (const Status*))                                                                               \
  F(const char*, Message, (const Status*))                                                                        \
  F(OpDefinitionBuilder*, NewOpDefinitionBuilder, (const char* name))                                             \
  F(void, OpDefinitionBuilderAddInput, (OpDefinitionBuilder*, const char* spec))                                  \
  F(void, OpDefinitionBuilderAddOutput, (OpDefinitionBuilder*, const char* spec))                                 \
  F(void, OpDefinitionBuilderAddAttr, (OpDefinitionBuilder*, const char* spec))                                   \
  F(void, OpDefinitionBuilderSetShapeInferenceFunction, (OpDefinitionBuilder*, ShapeFunction*))                   \
  F(void, RegisterOpDefinition, (OpDefinitionBuilder*, Status*)) /* owns the builder then */                      \
  F(void, ShapeInferenceContextSetUnknownShape, (ShapeInferenceContext*, Status*))                                \
  F(KernelBuilder*, NewKernelBuilder,                                                                             \
    (const char* op, const char* device, CreateFunction*, ComputeFunction*, DeleteFunction*))                     \
  F(void, RegisterKernelBuilder, (const char* name, KernelBuilder*, Status*)) /* owns the builder then */         \
  F(void, OpKernelConstruction_GetAttrSize,                                                                       \
    (OpKernelConstruction*, const char* name, std::int32_t* list_size, std::int32_t* total_size, Status*))        \
  F(void, OpKernelConstruction_GetAttrString,                                                                     \
    (OpKernelConstruction*, const char* name, char* value, std::size_t max_length, Status*)) /* not terminated */ \
  F(void, OpKernelConstruction_GetAttrInt64List,                                                                  \
    (OpKernelConstruction*, const char* name, std::int64_t* values, int max_values, Status*))                     \
  F(void, OpKernelConstruction_Failure, (OpKernelConstruction*, Status*))                                         \
  F(int, NumInputs, (OpKernelContext*))                                                                           \
  F(int, NumOutputs, (OpKernelContext*))                                                                          \
  F(void, GetInput, (OpKernelContext*, int index, Tensor**, Status*))                                             \
  F(Tensor*, AllocateOutput,                                                                                      \
    (OpKernelContext*, int index, DataType, const std::int64_t* sizes, int rank, std::size_t bytes, Status*))     \
  F(void, OpKernelContext_Failure, (OpKernelContext*, Status*))                                                   \
  F(void, DeleteTensor, (Tensor*))                                                                                \
  F(DataType, TensorType, (const Tensor*))                                                                        \
  F(int, NumDims, (const Tensor*))                                                                                \
  F(std::int64_t, Dim, (const Tensor*, int axis))                                                                 \
  F(void*, TensorData, (const Tensor*))

/// Pointers to the functions.
struct Api {
#define FASTRNN_MEMBER(Result, name, parameters) Result(*name) parameters;
  FASTRNN_TF_FUNCTIONS(FASTRNN_MEMBER)
#undef FASTRNN_MEMBER
};

}  // namespace tf_c
