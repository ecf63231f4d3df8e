// The CUDA kernels as the operators call them; free of CUDA's own headers.
#pragma once

#include "kernels.h"

namespace dynorm {

struct CudaCall {
    Function function;
    Type type;
    Tensors tensors;  // in device memory, like what parameters points to
    RawParameters parameters;
    size_t rows;
    size_t channels;
    void* stream;  // a cudaStream_t
};

// Enqueues one kernel: nothing is allocated and nothing waited for, so that the call can be captured in a
// graph. Returns null, or what CUDA has to say.
const char* launch_on_cuda(const CudaCall& call);

}  // namespace dynorm
