// ONNX Runtime's C API: the official header where the build was given one, else the declared subset. Either
// way the places of the entries in the function table are checked when this is compiled.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef DYNORM_OFFICIAL_ORT_HEADER
#include <onnxruntime_c_api.h>
#else
#include "ort_api_subset.h"
#endif

namespace dynorm {

// ONNX Runtime 1.21, the oldest served. Asking for this version keeps the library loadable in it whichever
// header it was built with.
inline constexpr uint32_t kOrtApiVersion = 21;

// A tensor's type and dimensions where they are: the accessors of version 21 copy them to the heap, which takes
// longer than a row of a small model. In the function table since ONNX Runtime 1.24; older ones, and their
// headers, do not know it.
using ShapeReference = OrtStatus* (*)(const OrtValue* value, ONNXTensorElementDataType* type,
                                      const int64_t** dims, size_t* rank) noexcept;
inline constexpr uint32_t kShapeReferenceVersion = 24;
inline constexpr size_t kShapeReferenceEntry = 414;

#define DYNORM_ENTRY(name, index) \
    static_assert(offsetof(OrtApi, name) == (index) * sizeof(void*), "OrtApi::" #name " has moved")
DYNORM_ENTRY(CreateStatus, 0);
DYNORM_ENTRY(CreateCustomOpDomain, 26);
DYNORM_ENTRY(CustomOpDomain_Add, 27);
DYNORM_ENTRY(AddCustomOpDomain, 28);
DYNORM_ENTRY(GetTensorMutableData, 51);
DYNORM_ENTRY(GetDimensionsCount, 61);
DYNORM_ENTRY(GetDimensions, 62);
DYNORM_ENTRY(GetSymbolicDimensions, 63);
DYNORM_ENTRY(GetTensorTypeAndShape, 65);
DYNORM_ENTRY(KernelContext_GetInput, 90);
DYNORM_ENTRY(KernelContext_GetOutput, 91);
DYNORM_ENTRY(ReleaseTensorTypeAndShapeInfo, 99);
DYNORM_ENTRY(ReleaseCustomOpDomain, 101);
DYNORM_ENTRY(KernelContext_GetGPUComputeStream, 193);
DYNORM_ENTRY(KernelInfoGetConstantInput_tensor, 249);
DYNORM_ENTRY(ShapeInferContext_GetInputTypeShape, 268);
DYNORM_ENTRY(ShapeInferContext_SetOutputTypeShape, 270);
DYNORM_ENTRY(SetSymbolicDimensions, 271);
DYNORM_ENTRY(KernelContext_ParallelFor, 274);
#if defined(ORT_API_VERSION) && ORT_API_VERSION >= 24
DYNORM_ENTRY(GetTensorElementTypeAndShapeDataReference, kShapeReferenceEntry);
#endif
#undef DYNORM_ENTRY

#define DYNORM_MEMBER(name, index)                                                              \
    static_assert(offsetof(OrtCustomOp, name) == (index) * sizeof(void*), "OrtCustomOp::" #name \
                                                                          " has "               \
                                                                          "moved")
DYNORM_MEMBER(CreateKernel, 1);
DYNORM_MEMBER(GetName, 2);
DYNORM_MEMBER(GetExecutionProviderType, 3);
DYNORM_MEMBER(GetInputType, 4);
DYNORM_MEMBER(GetInputTypeCount, 5);
DYNORM_MEMBER(GetOutputType, 6);
DYNORM_MEMBER(GetOutputTypeCount, 7);
DYNORM_MEMBER(KernelDestroy, 9);
DYNORM_MEMBER(GetInputCharacteristic, 10);
DYNORM_MEMBER(GetOutputCharacteristic, 11);
DYNORM_MEMBER(GetInputMemoryType, 12);
DYNORM_MEMBER(CreateKernelV2, 17);
DYNORM_MEMBER(KernelComputeV2, 18);
DYNORM_MEMBER(InferOutputShapeFn, 19);
DYNORM_MEMBER(GetStartVersion, 20);
DYNORM_MEMBER(GetEndVersion, 21);
DYNORM_MEMBER(GetMayInplace, 22);
DYNORM_MEMBER(ReleaseMayInplace, 23);
DYNORM_MEMBER(GetAliasMap, 24);
DYNORM_MEMBER(ReleaseAliasMap, 25);
#undef DYNORM_MEMBER

static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED == 0 && ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == 1 &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == 7 && ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == 10 &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE == 11 && ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == 16);
static_assert(ORT_FAIL == 1 && ORT_INVALID_ARGUMENT == 2 && OrtMemTypeDefault == 0 &&
              INPUT_OUTPUT_REQUIRED == 0);

}  // namespace dynorm
