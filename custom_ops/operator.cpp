// Reading a node's inputs and saying what is wrong with them.
#include "operator.h"

#include <memory>

namespace dynorm {

static const char* const kNames[kFunctions][2] = {
    {"DyISRU", "SkipDyISRU"}, {"DyT", "SkipDyT"}, {"Derf", "SkipDerf"}};

const char* Operator::name() const { return kNames[int(function)][skip]; }

const char* Operator::input_name(size_t index) const {
    if (index == 0) return "X";
    if (skip && index == 1) return "skip";
    switch (index - first_parameter_input()) {
        case 0: return "weight";
        case 1: return "bias";
        case 2: return function == Function::DyISRU ? "beta" : "alpha";
        default: return "shift";
    }
}

static std::string text(const std::vector<int64_t>& shape) {
    std::string result = "[";
    for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + "]";
}

[[noreturn]] static void wrong_shape(const Operator& op, size_t index, const std::vector<int64_t>& shape,
                                     const char* wanted, size_t other, const std::vector<int64_t>& other_shape) {
    throw Problem{ORT_INVALID_ARGUMENT, std::string("dynorm::") + op.name() + ": input " + op.input_name(index) +
                                            " has shape " + text(shape) + " and must have " + wanted + ", where " +
                                            op.input_name(other) + " has shape " + text(other_shape) + "."};
}

size_t TensorView::elements() const {
    size_t product = 1;
    for (const int64_t dim : shape) product *= size_t(dim);
    return product;
}

TensorView view(const OrtApi* api, const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api->GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
        info, api->ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0;
    check(api->GetDimensionsCount(info, &rank));
    TensorView result{nullptr, std::vector<int64_t>(rank)};
    check(api->GetDimensions(info, result.shape.data(), rank));
    // The API has one accessor of the data, for reading and for writing.
    void* data = nullptr;
    check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    result.data = data;
    return result;
}

TensorView input(const OrtApi* api, const OrtKernelContext* context, size_t index) {
    const OrtValue* value = nullptr;
    check(api->KernelContext_GetInput(context, index, &value));
    return view(api, value);
}

NodeParameters checked_parameters(const Operator& op, const std::vector<TensorView>& tensors) {
    const size_t at = op.first_parameter_input();
    const auto& weight = tensors[0].shape;
    if (weight.size() != 1) wrong_shape(op, at, weight, "one axis, the channels", at, weight);
    if (tensors[1].shape != weight) wrong_shape(op, at + 1, tensors[1].shape, "the same", at, weight);
    const size_t channels = size_t(weight[0]);
    for (size_t i = 2; i < tensors.size(); ++i) {
        const auto& shape = tensors[i].shape;
        const bool one_or_all = shape.size() == 1 && (shape[0] == 1 || shape == weight);
        if (!one_or_all) wrong_shape(op, at + i, shape, "one element or one for each channel", at, weight);
    }
    const bool two = op.parameters() == 2;
    const RawParameters raw{
        tensors[0].data,
        tensors[1].data,
        static_cast<const float*>(tensors[2].data),
        two ? static_cast<const float*>(tensors[3].data) : nullptr,
        tensors[2].elements(),
        two ? tensors[3].elements() : 0,
    };
    return {raw, channels};
}

NodeInputs checked_inputs(const Operator& op, const OrtKernelContext* context, size_t channels) {
    NodeInputs inputs{input(op.api, context, 0), nullptr, 0};
    const auto& shape = inputs.x.shape;
    if (shape.empty() || size_t(shape.back()) != channels) {
        wrong_shape(op, 0, shape, "a last axis of as many elements as there are channels", op.first_parameter_input(),
                    {int64_t(channels)});
    }
    inputs.elements = inputs.x.elements();
    if (op.skip) {
        const TensorView skip = input(op.api, context, 1);
        if (skip.shape != shape) wrong_shape(op, 1, skip.shape, "the same", 0, shape);
        inputs.skip = skip.data;
    }
    return inputs;
}

void* output(const Operator& op, OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) {
    OrtValue* value = nullptr;
    check(op.api->KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
    if (!value) {
        throw Problem{ORT_INVALID_ARGUMENT, std::string("dynorm::") + op.name() + ": output " +
                                                (index ? "residual" : "Y") + " has no name in the model."};
    }
    void* data = nullptr;
    check(op.api->GetTensorMutableData(value, &data));
    return data;
}

}  // namespace dynorm
