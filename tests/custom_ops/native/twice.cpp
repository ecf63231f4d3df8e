// A custom-op library of somebody else, as small as one can be: theirs.Twice (float32), y = 2 x.
#include "ort_api.h"

namespace {

const OrtApi* api = nullptr;

// Of a tensor's shape what copying it takes: as many axes as a test's model has at most.
constexpr size_t kMostAxes = 8;

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel) {
    *kernel = nullptr;
    return nullptr;
}

OrtStatus* compute(void*, OrtKernelContext* context) {
    const OrtValue* x = nullptr;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (OrtStatus* status = api->KernelContext_GetInput(context, 0, &x)) return status;
    if (OrtStatus* status = api->GetTensorTypeAndShape(x, &info)) return status;
    size_t rank = 0, size = 1;
    int64_t dims[kMostAxes];
    OrtStatus* status = api->GetDimensionsCount(info, &rank);
    if (!status && rank > kMostAxes) status = api->CreateStatus(ORT_FAIL, "Twice: too many axes");
    if (!status) status = api->GetDimensions(info, dims, rank);
    api->ReleaseTensorTypeAndShapeInfo(info);
    if (status) return status;
    for (size_t i = 0; i < rank; ++i) size *= size_t(dims[i]);
    OrtValue* y = nullptr;
    void *from = nullptr, *to = nullptr;
    status = api->KernelContext_GetOutput(context, 0, dims, rank, &y);
    if (!status) status = api->GetTensorMutableData(const_cast<OrtValue*>(x), &from);
    if (!status) status = api->GetTensorMutableData(y, &to);
    if (status) return status;
    for (size_t i = 0; i < size; ++i) static_cast<float*>(to)[i] = 2 * static_cast<const float*>(from)[i];
    return nullptr;
}

OrtCustomOp make_twice() {
    OrtCustomOp op{};
    op.version = dynorm::kOrtApiVersion;
    op.GetName = [](const OrtCustomOp*) { return "Twice"; };
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
    op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    op.GetInputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
    op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
    op.KernelDestroy = [](void*) {};
    op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    op.CreateKernelV2 = create;
    op.KernelComputeV2 = compute;
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return 1 << 30; };
    return op;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
    api = base->GetApi(dynorm::kOrtApiVersion);
    static const OrtCustomOp twice = make_twice();
    OrtCustomOpDomain* domain = nullptr;  // ONNX Runtime reads it until the last session ends
    if (OrtStatus* status = api->CreateCustomOpDomain("theirs", &domain)) return status;
    if (OrtStatus* status = api->CustomOpDomain_Add(domain, &twice)) return status;
    return api->AddCustomOpDomain(options, domain);
}
