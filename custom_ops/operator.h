// One dynorm operator for one type and provider, as ONNX Runtime sees it, and what its kernels share: reading
// the inputs and checking their shapes.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "kernels.h"
#include "ort_api.h"

namespace dynorm {

struct Operator : OrtCustomOp {
    const OrtApi* api;
    ShapeReference shape_reference;  // null where the runtime has none
    Function function;
    Type type;
    Form form;
    const char* provider;

    size_t parameters() const { return size_t(signature(function).parameters); }
    size_t outputs() const { return form.skip ? 2 : 1; }
    // weight, then bias and the function's own; then, in the coupled forms, which channels and how strongly.
    size_t first_parameter_input() const { return form.skip ? 2 : 1; }
    size_t first_coupling_input() const { return first_parameter_input() + 2 + parameters(); }
    size_t inputs() const { return first_coupling_input() + (form.coupled ? 2 : 0); }
    const char* name() const;
    const char* input_name(size_t index) const;
};

// Why a node cannot be computed. Thrown inside the library only; the callbacks turn it into an OrtStatus.
struct Problem {
    OrtErrorCode code;
    std::string sentence;
};

// ONNX Runtime's own failures travel as they are.
struct RuntimeFailure {
    OrtStatus* status;
};

inline void check(OrtStatus* status) {
    if (status) throw RuntimeFailure{status};
}

// Runs a callback's body and returns its failure, if any, as a status.
template <class Body>
OrtStatus* guarded(const OrtApi* api, const Body& body) {
    try {
        body();
        return nullptr;
    } catch (const RuntimeFailure& failure) {
        return failure.status;
    } catch (const Problem& problem) {
        return api->CreateStatus(problem.code, problem.sentence.c_str());
    } catch (const std::exception& error) {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}

// Dimensions without an allocation for every rank in use: a call of one row takes about a microsecond in all.
class Shape {
  public:
    explicit Shape(size_t rank) : rank_(rank), many_(rank > kFew ? rank : 0) {}

    int64_t* data() { return rank_ > kFew ? many_.data() : few_; }
    const int64_t* data() const { return rank_ > kFew ? many_.data() : few_; }
    size_t rank() const { return rank_; }
    int64_t back() const { return data()[rank_ - 1]; }
    size_t elements() const;
    std::string text() const;  // "[2, 3]"
    bool operator==(const Shape& other) const;
    bool operator!=(const Shape& other) const { return !(*this == other); }

  private:
    static constexpr size_t kFew = 8;

    size_t rank_;
    int64_t few_[kFew];
    std::vector<int64_t> many_;
};

struct TensorView {
    const void* data;
    Shape shape;
};

TensorView view(const Operator& op, const OrtValue* value);
TensorView input(const Operator& op, const OrtKernelContext* context, size_t index);

// weight, bias and parameters of a node, with their shapes checked against each other.
struct NodeParameters {
    RawParameters raw;
    size_t channels;
};

// `tensors` are the inputs from first_parameter_input() on.
NodeParameters checked_parameters(const Operator& op, const std::vector<TensorView>& tensors);

// That the coupled channels are channels, where they can be read.
void check_coupled_channels(const Operator& op, const NodeParameters& parameters);

// X and, for the Skip forms, skip: X must end in an axis of `channels`, skip must have X's shape.
struct NodeInputs {
    TensorView x;
    const void* skip;
    size_t elements;
};

NodeInputs checked_inputs(const Operator& op, const OrtKernelContext* context, size_t channels);

// The buffer of an output with the shape of X.
void* output(const Operator& op, OrtKernelContext* context, size_t index, const Shape& shape);

// The kernels behind CreateKernelV2, one factory for each provider.
class NodeKernel {
  public:
    explicit NodeKernel(const Operator& op) : op_(op) {}
    NodeKernel(const NodeKernel&) = delete;
    NodeKernel& operator=(const NodeKernel&) = delete;
    virtual ~NodeKernel() = default;
    virtual void compute(OrtKernelContext* context) const = 0;
    const OrtApi* api() const { return op_.api; }

  protected:
    const Operator& op_;
};

NodeKernel* make_cpu_kernel(const Operator& op, const OrtKernelInfo* info);
#ifdef DYNORM_WITH_CUDA
NodeKernel* make_cuda_kernel(const Operator& op);
#endif

}  // namespace dynorm
