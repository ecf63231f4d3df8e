// The library's door: RegisterCustomOps, and the callbacks by which ONNX Runtime learns about an operator.
#include <atomic>
#include <charconv>
#include <climits>
#include <cstring>
#include <memory>

#include "operator.h"

#define DYNORM_EXPORT extern "C" __attribute__((visibility("default")))

namespace dynorm {
namespace {

constexpr const char* kCpu = "CPUExecutionProvider";
#ifdef DYNORM_WITH_CUDA
constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kProviders[] = {kCpu, kCuda};
#else
constexpr const char* kProviders[] = {kCpu};
#endif

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

ONNXTensorElementDataType tensor_type(const Operator& op) {
    switch (op.type) {
        case Type::Float: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case Type::Half: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case Type::BFloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
        case Type::Double: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

ONNXTensorElementDataType input_type(const OrtCustomOp* op, size_t index) {
    const Operator& o = self(op);
    if (index < o.first_parameter_input() + 2) return tensor_type(o);
    return o.form.coupled && index == o.first_coupling_input() ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                                               : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(api, [&] {
#ifdef DYNORM_WITH_CUDA
        if (self(op).provider == kCuda) {
            *kernel = make_cuda_kernel(self(op));
            return;
        }
#endif
        *kernel = make_cpu_kernel(self(op), info);
    });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const auto* node = static_cast<const NodeKernel*>(kernel);
    return guarded(node->api(), [&] { node->compute(context); });
}

void destroy_kernel(void* kernel) { delete static_cast<NodeKernel*>(kernel); }

// Every output has X's shape. An axis of X without size and name gets a name of its own: ONNX Runtime would
// take the shape without it for an axis of -1 elements, and the other axes would be lost if no shape were
// given.
OrtStatus* infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
    static std::atomic<uint64_t> names_given{0};
    const OrtApi* api = self(op).api;
    return guarded(api, [&] {
        OrtTensorTypeAndShapeInfo* x = nullptr;
        check(api->ShapeInferContext_GetInputTypeShape(context, 0, &x));
        size_t rank = 0;
        check(api->GetDimensionsCount(x, &rank));
        if (rank == 0) return;  // X's shape is unknown: the channels' axis is always there
        std::vector<int64_t> dims(rank);
        std::vector<const char*> names(rank);
        check(api->GetDimensions(x, dims.data(), rank));
        check(api->GetSymbolicDimensions(x, names.data(), rank));
        std::vector<std::string> kept;
        for (size_t i = 0; i < rank; ++i) {
            const bool anonymous = dims[i] < 0 && !*names[i];
            kept.push_back(anonymous ? "dynorm_axis_" + std::to_string(names_given++) : names[i]);
        }
        for (size_t i = 0; i < rank; ++i) names[i] = kept[i].c_str();
        check(api->SetSymbolicDimensions(x, names.data(), rank));
        for (size_t i = 0; i < self(op).outputs(); ++i) {
            check(api->ShapeInferContext_SetOutputTypeShape(context, i, x));
        }
    });
}

// Pairs (input, output) that may share a buffer, in the order in which they are tried.
int kPlainInputs[] = {0}, kPlainOutputs[] = {0};
int kSkipInputs[] = {0, 1, 1, 0}, kSkipOutputs[] = {1, 0, 1, 0};

size_t share_plain(int** inputs, int** outputs) {
    *inputs = kPlainInputs;
    *outputs = kPlainOutputs;
    return 1;
}

size_t share_skip(int** inputs, int** outputs) {
    *inputs = kSkipInputs;
    *outputs = kSkipOutputs;
    return 4;
}

// What a runtime of 1.24 or newer adds to the table of version 21. A runtime is not asked for a version that it
// lacks: it would print a complaint.
ShapeReference shape_reference(const OrtApiBase* base) {
    unsigned major = 0, minor = 0;
    const char* const version = base->GetVersionString();
    const char* const end = version + std::strlen(version);
    const auto [dot, no_major] = std::from_chars(version, end, major);
    if (no_major != std::errc() || dot == end) return nullptr;
    const auto [rest, no_minor] = std::from_chars(dot + 1, end, minor);
    if (no_minor != std::errc() || (major == 1 && minor < kShapeReferenceVersion)) return nullptr;
    const OrtApi* api = base->GetApi(kShapeReferenceVersion);
    return api ? reinterpret_cast<const ShapeReference*>(api)[kShapeReferenceEntry] : nullptr;
}

// The functions of the runtime that has loaded the library.
struct Runtime {
    const OrtApi* api;
    ShapeReference shape_reference;
};

Operator make_operator(const Runtime& runtime, Function function, Type type, Form form,
                       const char* provider) {
    Operator op{};
    op.api = runtime.api;
    op.shape_reference = runtime.shape_reference;
    op.function = function;
    op.type = type;
    op.form = form;
    op.provider = provider;
    op.version = kOrtApiVersion;
    op.GetName = [](const OrtCustomOp* o) { return self(o).name(); };
    op.GetExecutionProviderType = [](const OrtCustomOp* o) { return self(o).provider; };
    op.GetInputType = input_type;
    op.GetInputTypeCount = [](const OrtCustomOp* o) { return self(o).inputs(); };
    op.GetOutputType = [](const OrtCustomOp* o, size_t) { return tensor_type(self(o)); };
    op.GetOutputTypeCount = [](const OrtCustomOp* o) { return self(o).outputs(); };
    op.KernelDestroy = destroy_kernel;
    op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    op.CreateKernelV2 = create_kernel;
    op.KernelComputeV2 = compute;
    op.InferOutputShapeFn = infer_shapes;
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    op.GetMayInplace = form.skip ? share_skip : share_plain;
    op.ReleaseMayInplace = [](int*, int*) {};
    return op;
}

// The operators of one ONNX Runtime, for all of its sessions. It keeps pointers to them until the last
// session ends, and does not say when that is, so they are never given back; the library stays loaded as well
// (CMakeLists.txt).
class Registration {
  public:
    explicit Registration(const Runtime& runtime)
        : api_(runtime.api), domain_(nullptr, runtime.api->ReleaseCustomOpDomain) {
        OrtCustomOpDomain* domain = nullptr;
        check(api_->CreateCustomOpDomain("dynorm", &domain));
        domain_.reset(domain);
        operators_.reserve(size_t(kFunctions) * kTypes * std::size(kForms) * std::size(kProviders));
        for (int function = 0; function < kFunctions; ++function) {
            for (int type = 0; type < kTypes; ++type) {
                for (const Form form : kForms) {
                    for (const char* provider : kProviders) {
                        operators_.push_back(
                            make_operator(runtime, Function(function), Type(type), form, provider));
                        check(api_->CustomOpDomain_Add(domain, &operators_.back()));
                    }
                }
            }
        }
    }

    // The one of this runtime, made at its first call. No lock: one that another thread holds while the
    // process is forked would never be released in the child. Threads that come first together each make one,
    // and all of them stay.
    static const Registration& of(const Runtime& runtime) {
        static std::atomic<const Registration*> newest{nullptr};
        for (const Registration* known = newest; known; known = known->next_) {
            if (known->api_ == runtime.api) return *known;
        }
        auto made = std::make_unique<Registration>(runtime);
        made->next_ = newest;
        while (!newest.compare_exchange_weak(made->next_, made.get())) {
        }
        return *made.release();
    }

    void add_to(OrtSessionOptions* options) const { check(api_->AddCustomOpDomain(options, domain_.get())); }

  private:
    const OrtApi* api_;
    std::vector<Operator> operators_;
    std::unique_ptr<OrtCustomOpDomain, void (*)(OrtCustomOpDomain*)> domain_;
    const Registration* next_ = nullptr;
};

}  // namespace
}  // namespace dynorm

#ifdef __GLIBC__
// The C++ runtime that is linked in asks glibc whether the process has one thread only, to count references without
// atomics. It is told no here: glibc before 2.32 has no answer, and would not load the library.
extern "C" {
char __libc_single_threaded = 0;  // NOLINT(bugprone-reserved-identifier)
}
#endif

// Called by OrtApi::RegisterCustomOpsLibrary_V2.
DYNORM_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    using namespace dynorm;
    const OrtApi* api = base->GetApi(kOrtApiVersion);
    if (!api) {
        // Version 1 is there in every runtime, and its first entry makes the status.
        const std::string sentence =
            std::string("dynorm's kernels need ONNX Runtime 1.21 or newer, and this is ") +
            base->GetVersionString() + ": without them the model runs by its function bodies.";
        return base->GetApi(1)->CreateStatus(ORT_FAIL, sentence.c_str());
    }
    return guarded(api, [&] { Registration::of(Runtime{api, shape_reference(base)}).add_to(options); });
}

// The providers for which there are kernels, separated by commas.
DYNORM_EXPORT const char* dynorm_providers() {
#ifdef DYNORM_WITH_CUDA
    return "CPUExecutionProvider,CUDAExecutionProvider";
#else
    return "CPUExecutionProvider";
#endif
}
