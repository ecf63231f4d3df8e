// The operators on the CPU: constants prepared once, elements shared out to ONNX Runtime's threads.
#include <algorithm>
#include <memory>

#include "operator.h"

namespace dynorm {
namespace {

// A call of one grain stays on its thread: waking another costs about as much as a grain takes.
constexpr size_t kGrain = 16384;
// Enough pieces for threads that start late or run beside other work, few enough that handing them out is
// free.
constexpr size_t kMostPieces = 64;
// Pieces begin at whole cache lines of every type.
constexpr size_t kPieceAlignment = 64;
// From this size on y goes past the caches, which saves reading the memory that it overwrites: measured a
// quarter faster than through them at 32 MiB, and half again with two outputs.
constexpr size_t kStreamingBytes = size_t(1) << 24;

// An output in an input's buffer is in the caches already.
bool worth_streaming(const Tensors& tensors, size_t bytes) {
    const auto is_input = [&](const void* place) { return place == tensors.x || place == tensors.skip; };
    return bytes >= kStreamingBytes && !is_input(tensors.y) &&
           !(tensors.residual && is_input(tensors.residual));
}

struct Job {
    Kernel kernel;
    Tensors tensors;
    const void* channels;
    size_t elements;
    size_t piece;
};

void run_piece(void* job_pointer, size_t index) {
    const Job& job = *static_cast<const Job*>(job_pointer);
    const size_t begin = index * job.piece;
    job.kernel(job.tensors, job.channels, begin, std::min(begin + job.piece, job.elements));
}

class CpuKernel : public NodeKernel {
  public:
    CpuKernel(const Operator& op, const OrtKernelInfo* info) : NodeKernel(op) {
        kernel_ = kernel_table().kernels[int(op.function)][int(op.type)][op.skip];
        std::vector<TensorView> tensors;
        for (size_t i = op.first_parameter_input(); i < op.inputs(); ++i) {
            int is_constant = 0;
            const OrtValue* value = nullptr;
            check(op.api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
            if (!is_constant) return;
            tensors.push_back(view(op.api, value));
        }
        constants_ = prepare(tensors);
    }

    void compute(OrtKernelContext* context) const override {
        Prepared computed;
        const Prepared* parameters = &constants_;
        if (!constants_.coefficients) {
            std::vector<TensorView> tensors;
            for (size_t i = op_.first_parameter_input(); i < op_.inputs(); ++i) {
                tensors.push_back(input(op_.api, context, i));
            }
            computed = prepare(tensors);
            parameters = &computed;
        }
        const NodeInputs inputs = checked_inputs(op_, context, parameters->channels);
        void* const y = output(op_, context, 0, inputs.x.shape);
        void* const residual = op_.skip ? output(op_, context, 1, inputs.x.shape) : nullptr;
        if (inputs.elements == 0) return;
        Tensors tensors{inputs.x.data, inputs.skip, y, residual, false};
        tensors.stream = worth_streaming(tensors, inputs.elements * element_size(op_.type));
        run(context, tensors, parameters->coefficients->get(), inputs.elements);
    }

  private:
    struct Prepared {
        size_t channels = 0;
        std::unique_ptr<PreparedChannels> coefficients;
    };

    Prepared prepare(const std::vector<TensorView>& tensors) const {
        const NodeParameters parameters = checked_parameters(op_, tensors);
        return {parameters.channels, std::make_unique<PreparedChannels>(op_.function, op_.type,
                                                                        parameters.raw, parameters.channels)};
    }

    void run(OrtKernelContext* context, const Tensors& tensors, const void* channels, size_t elements) const {
        const size_t fair = (elements + kMostPieces - 1) / kMostPieces;
        const size_t piece =
            (std::max(kGrain, fair) + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
        Job job{kernel_, tensors, channels, elements, piece};
        const size_t pieces = (elements + piece - 1) / piece;
        if (pieces == 1) {
            run_piece(&job, 0);
        } else {
            check(op_.api->KernelContext_ParallelFor(context, run_piece, pieces, 0, &job));
        }
    }

    Kernel kernel_;
    Prepared constants_;
};

}  // namespace

NodeKernel* make_cpu_kernel(const Operator& op, const OrtKernelInfo* info) { return new CpuKernel(op, info); }

}  // namespace dynorm
