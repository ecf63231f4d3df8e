// The operators on the CPU: constants prepared once, elements shared out to ONNX Runtime's threads.
#include <algorithm>
#include <memory>
#include <thread>

#include "operator.h"

namespace dynorm {
namespace {

// A call of less than two grains stays on its thread: waking another costs about as much as a grain takes.
constexpr size_t kGrain = 16384;
// Tensors in the caches go in one piece for each thread, so that the next operator finds its part where this
// one left it; those in memory in more, for threads that start late or run beside other work.
constexpr size_t kPiecesInMemory = 8;
// Pieces begin at whole groups of rows, which the kernels take side by side, where there are enough.
constexpr size_t kRowsTogether = 4;
// Else at whole cache lines of every type; in the coupled forms at whole rows.
constexpr size_t kPieceAlignment = 64;
// From this size on y goes past the caches, which saves reading the memory that it overwrites: measured a
// quarter faster than through them at 32 MiB, and half again with two outputs.
constexpr size_t kStreamingBytes = size_t(1) << 24;

size_t processors() noexcept { return std::max(1u, std::thread::hardware_concurrency()); }
// Asked for as the library is loaded: it takes the system some files to read.
const size_t kProcessors = processors();

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
    CpuKernel(const Operator& op, const OrtKernelInfo* info)
        : NodeKernel(op),
          kernel_(kernel_table().kernels[int(op.function)][int(op.type)][op.form.skip][op.form.coupled]) {
        std::vector<TensorView> tensors;
        for (size_t i = op.first_parameter_input(); i < op.inputs(); ++i) {
            int is_constant = 0;
            const OrtValue* value = nullptr;
            check(op.api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
            if (!is_constant) return;
            tensors.push_back(view(op, value));
        }
        constants_ = prepare(tensors);
    }

    void compute(OrtKernelContext* context) const override {
        Prepared computed;
        const Prepared* parameters = &constants_;
        if (!constants_.coefficients) {
            std::vector<TensorView> tensors;
            for (size_t i = op_.first_parameter_input(); i < op_.inputs(); ++i) {
                tensors.push_back(input(op_, context, i));
            }
            computed = prepare(tensors);
            parameters = &computed;
        }
        const NodeInputs inputs = checked_inputs(op_, context, parameters->channels);
        void* const y = output(op_, context, 0, inputs.x.shape);
        void* const residual = op_.form.skip ? output(op_, context, 1, inputs.x.shape) : nullptr;
        if (inputs.elements == 0) return;
        Tensors tensors{inputs.x.data, inputs.skip, y, residual, false};
        tensors.stream = worth_streaming(tensors, inputs.elements * element_size(op_.type));
        run(context, tensors, *parameters, inputs.elements);
    }

  private:
    struct Prepared {
        size_t channels = 0;
        std::unique_ptr<PreparedChannels> coefficients;
    };

    Prepared prepare(const std::vector<TensorView>& tensors) const {
        const NodeParameters parameters = checked_parameters(op_, tensors);
        check_coupled_channels(op_, parameters);
        return {parameters.channels, std::make_unique<PreparedChannels>(op_.function, op_.type,
                                                                        parameters.raw, parameters.channels)};
    }

    // The elements of a piece. How many threads there are is not told; at most one for each processor.
    size_t piece_of(size_t elements, size_t channels) const {
        const bool in_memory = elements * element_size(op_.type) >= kStreamingBytes;
        const size_t most = kProcessors * (in_memory ? kPiecesInMemory : 1);
        const size_t pieces = std::clamp<size_t>(elements / kGrain, 1, most);
        const size_t fair = (elements + pieces - 1) / pieces;
        const size_t group = kRowsTogether * channels;
        const size_t unit = fair >= group ? group : op_.form.coupled ? channels : kPieceAlignment;
        return (fair + unit - 1) / unit * unit;
    }

    void run(OrtKernelContext* context, const Tensors& tensors, const Prepared& parameters,
             size_t elements) const {
        if (elements < 2 * kGrain) return kernel_(tensors, parameters.coefficients->get(), 0, elements);
        const size_t piece = piece_of(elements, parameters.channels);
        Job job{kernel_, tensors, parameters.coefficients->get(), elements, piece};
        const size_t pieces = (elements + piece - 1) / piece;
        check(op_.api->KernelContext_ParallelFor(context, run_piece, pieces, 0, &job));
    }

    Kernel kernel_;
    Prepared constants_;
};

}  // namespace

NodeKernel* make_cpu_kernel(const Operator& op, const OrtKernelInfo* info) { return new CpuKernel(op, info); }

}  // namespace dynorm
