// The operators on CUDA: all tensors are on the device, only their shapes are looked at here.
#include "cuda_kernels.h"
#include "operator.h"

namespace dynorm {
namespace {

class CudaKernel : public NodeKernel {
  public:
    using NodeKernel::NodeKernel;

    void compute(OrtKernelContext* context) const override {
        std::vector<TensorView> tensors;
        tensors.reserve(op_.inputs() - op_.first_parameter_input());
        for (size_t i = op_.first_parameter_input(); i < op_.inputs(); ++i) {
            tensors.push_back(input(op_, context, i));
        }
        const NodeParameters parameters = checked_parameters(op_, tensors);
        const NodeInputs inputs = checked_inputs(op_, context, parameters.channels);
        void* const y = output(op_, context, 0, inputs.x.shape);
        void* const residual = op_.form.skip ? output(op_, context, 1, inputs.x.shape) : nullptr;
        if (inputs.elements == 0) return;
        void* stream = nullptr;
        check(op_.api->KernelContext_GetGPUComputeStream(context, &stream));
        const char* problem = launch_on_cuda({op_.function,
                                              op_.type,
                                              {inputs.x.data, inputs.skip, y, residual, false},
                                              parameters.raw,
                                              inputs.elements / parameters.channels,
                                              parameters.channels,
                                              stream});
        if (problem) throw Problem{ORT_FAIL, std::string("dynorm::") + op_.name() + " on CUDA: " + problem};
    }
};

}  // namespace

NodeKernel* make_cuda_kernel(const Operator& op) { return new CudaKernel(op); }

}  // namespace dynorm
