// Reading a node's inputs and saying what is wrong with them.
#include "operator.h"

#include <algorithm>
#include <memory>

namespace dynorm {

const char* Operator::name() const { return signature(function).names[form.skip][form.coupled]; }

const char* Operator::input_name(size_t index) const {
    if (index == 0) return "X";
    if (form.skip && index == 1) return "skip";
    if (index >= first_coupling_input()) return index == first_coupling_input() ? "channels" : "coupling";
    const size_t parameter = index - first_parameter_input();
    if (parameter == 0) return "weight";
    if (parameter == 1) return "bias";
    return signature(function).parameter_names[parameter - 2];
}

std::string Shape::text() const {
    std::string result = "[";
    for (size_t i = 0; i < rank_; ++i) result += (i ? ", " : "") + std::to_string(data()[i]);
    return result + "]";
}

size_t Shape::elements() const {
    size_t product = 1;
    for (size_t i = 0; i < rank_; ++i) product *= size_t(data()[i]);
    return product;
}

bool Shape::operator==(const Shape& other) const {
    return rank_ == other.rank_ && std::equal(data(), data() + rank_, other.data());
}

[[noreturn]] static void wrong_shape(const Operator& op, size_t index, const Shape& shape, const char* wanted,
                                     size_t other, const std::string& other_shape) {
    throw Problem{ORT_INVALID_ARGUMENT, std::string("dynorm::") + op.name() + ": input " +
                                            op.input_name(index) + " has shape " + shape.text() +
                                            " and must have " + wanted + ", where " + op.input_name(other) +
                                            " has shape " + other_shape + "."};
}

static Shape copied_shape(const OrtApi* api, const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api->GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
        info, api->ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0;
    check(api->GetDimensionsCount(info, &rank));
    Shape shape(rank);
    check(api->GetDimensions(info, shape.data(), rank));
    return shape;
}

static Shape shape_of(const Operator& op, const OrtValue* value) {
    if (!op.shape_reference) return copied_shape(op.api, value);
    ONNXTensorElementDataType type;
    const int64_t* dims = nullptr;
    size_t rank = 0;
    check(op.shape_reference(value, &type, &dims, &rank));
    Shape shape(rank);
    std::copy_n(dims, rank, shape.data());
    return shape;
}

TensorView view(const Operator& op, const OrtValue* value) {
    // The API has one accessor of the data, for reading and for writing.
    void* data = nullptr;
    check(op.api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return {data, shape_of(op, value)};
}

TensorView input(const Operator& op, const OrtKernelContext* context, size_t index) {
    const OrtValue* value = nullptr;
    check(op.api->KernelContext_GetInput(context, index, &value));
    return view(op, value);
}

NodeParameters checked_parameters(const Operator& op, const std::vector<TensorView>& tensors) {
    const size_t at = op.first_parameter_input();
    const Shape& weight = tensors[0].shape;
    if (weight.rank() != 1) wrong_shape(op, at, weight, "one axis, the channels", at, weight.text());
    if (tensors[1].shape != weight) {
        wrong_shape(op, at + 1, tensors[1].shape, "the same", at, weight.text());
    }
    const size_t channels = size_t(weight.back());
    const size_t coupling = 2 + op.parameters();
    for (size_t i = 2; i < coupling; ++i) {
        const Shape& shape = tensors[i].shape;
        const bool one_or_all = shape.rank() == 1 && (shape.back() == 1 || shape == weight);
        if (!one_or_all) {
            wrong_shape(op, at + i, shape, "one element or one for each channel", at, weight.text());
        }
    }
    const bool two = op.parameters() == 2;
    RawParameters raw{
        tensors[0].data,
        tensors[1].data,
        static_cast<const float*>(tensors[2].data),
        two ? static_cast<const float*>(tensors[3].data) : nullptr,
        tensors[2].shape.elements(),
        two ? tensors[3].shape.elements() : 0,
    };
    if (op.form.coupled) {
        const Shape& coupled = tensors[coupling].shape;
        if (coupled.rank() != 1 || coupled.back() == 0) {
            wrong_shape(op, at + coupling, coupled, "one axis of at least one element", at, weight.text());
        }
        if (tensors[coupling + 1].shape != coupled) {
            wrong_shape(op, at + coupling + 1, tensors[coupling + 1].shape, "the same", at + coupling,
                        coupled.text());
        }
        raw.coupled = static_cast<const int64_t*>(tensors[coupling].data);
        raw.strengths = static_cast<const float*>(tensors[coupling + 1].data);
        raw.coupled_count = size_t(coupled.back());
    }
    return {raw, channels};
}

void check_coupled_channels(const Operator& op, const NodeParameters& parameters) {
    const int64_t channels = int64_t(parameters.channels);
    for (size_t k = 0; k < parameters.raw.coupled_count; ++k) {
        const int64_t c = parameters.raw.coupled[k];
        if (c < 0 || c >= channels) {
            throw Problem{ORT_INVALID_ARGUMENT, std::string("dynorm::") + op.name() +
                                                    ": input channels holds " + std::to_string(c) +
                                                    ", and must hold indices of channels, 0 to " +
                                                    std::to_string(channels - 1) + "."};
        }
    }
}

NodeInputs checked_inputs(const Operator& op, const OrtKernelContext* context, size_t channels) {
    NodeInputs inputs{input(op, context, 0), nullptr, 0};
    const Shape& shape = inputs.x.shape;
    if (shape.rank() == 0 || size_t(shape.back()) != channels) {
        wrong_shape(op, 0, shape, "a last axis of as many elements as there are channels",
                    op.first_parameter_input(), "[" + std::to_string(channels) + "]");
    }
    inputs.elements = shape.elements();
    if (op.form.skip) {
        const TensorView skip = input(op, context, 1);
        if (skip.shape != shape) wrong_shape(op, 1, skip.shape, "the same", 0, shape.text());
        inputs.skip = skip.data;
    }
    return inputs;
}

void* output(const Operator& op, OrtKernelContext* context, size_t index, const Shape& shape) {
    OrtValue* value = nullptr;
    check(op.api->KernelContext_GetOutput(context, index, shape.data(), shape.rank(), &value));
    void* data = nullptr;
    check(op.api->GetTensorMutableData(value, &data));
    return data;
}

}  // namespace dynorm
