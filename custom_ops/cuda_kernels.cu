// The operators on CUDA: each thread keeps the coefficients of its channels in registers and goes down the
// rows, 16 bytes at a time where the shapes allow it; in the coupled forms a block goes along whole rows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda_kernels.h"

#define DYNORM_TARGET cuda

namespace dynorm::cuda {

__device__ inline float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// Comparisons that are false for NaN leave it as it is; fminf would not.
__device__ inline float clamp(float t, float limit) { return t > limit ? limit : t < -limit ? -limit : t; }
__device__ inline double clamp(double t, double limit) { return t > limit ? limit : t < -limit ? -limit : t; }

__device__ inline float wide(float t) { return t; }
// The processor's own approximations, within one (the root: two) units in the last place of normal numbers:
// correct rounding would take several times as many instructions, with a branch in every division.
__device__ inline float divide(float a, float b) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
}
__device__ inline float two_over_root(float q) {
    float inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(q));
    return 2.0f * inverse;
}
__device__ inline double two_over_root(double q) { return 2.0 / ::sqrt(q); }

template <class Real>
__device__ inline Real inverse_root(float beta);
// In float: with one row there is nothing to spread a double square root over.
template <>
__device__ inline float inverse_root<float>(float beta) {
    return __frsqrt_rn(beta);
}
template <>
__device__ inline double inverse_root<double>(float beta) {
    return 1.0 / ::sqrt(double(beta));
}

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ inline float widen(BFloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

__device__ inline void narrow(float value, float* out) { *out = value; }
__device__ inline void narrow(double value, double* out) { *out = value; }
__device__ inline void narrow(float value, Half* out) {
    out->bits = __half_as_ushort(__float2half_rn(value));
}
__device__ inline void narrow(float value, BFloat16* out) {
    out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

}  // namespace dynorm::cuda

#include "formulas.h"

namespace dynorm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kBytes = 16;
// Loads in flight for each thread before the first store: two cover the memory's latency at full occupancy.
constexpr int kRowsAtOnce = 2;

template <class T>
struct RealOf {
    using type = float;
};
template <>
struct RealOf<double> {
    using type = double;
};

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
    T values[width];
};

// `width` values, 16 bytes at a time. A Pack is copied first: of memory that is only referred to, the compiler
// loads one value at a time.
template <int width, class T>
__device__ void load(const T* from, T (&to)[width]) {
    constexpr int piece = width * sizeof(T) > kBytes ? kBytes / sizeof(T) : width;
#pragma unroll
    for (int i = 0; i < width; i += piece) {
        const auto pack = *reinterpret_cast<const Pack<T, piece>*>(from + i);
#pragma unroll
        for (int j = 0; j < piece; ++j) to[i + j] = pack.values[j];
    }
}

// A parameter of `width` channels, or the one of all channels.
template <int width>
__device__ void load_parameter(const float* from, bool per_channel, size_t channel, float (&to)[width]) {
    if (per_channel) return load(from + channel, to);
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = *from;
}

template <class T>
struct Arguments {
    const T* x;
    const T* skip;
    T* y;
    T* residual;
    const T* weight;
    const T* bias;
    const float* first;
    const float* second;
    bool first_per_channel;
    bool second_per_channel;
    const int64_t* coupled;
    const float* strengths;
    size_t coupled_count;
    size_t rows;
    size_t packs;  // in a row
};

// What a thread keeps of its `width` channels.
template <class F, class T, int width>
struct ThreadChannels {
    using Real = typename RealOf<T>::type;
    Real weight[width];
    Real bias[width];
    Coefficients<Real> coefficients[width];

    __device__ ThreadChannels(const Arguments<T>& a, size_t channel) {
        T weights[width], biases[width];
        float first[width], second[width] = {};
        load(a.weight + channel, weights);
        load(a.bias + channel, biases);
        load_parameter(a.first, a.first_per_channel, channel, first);
        if constexpr (F::parameters > 1) load_parameter(a.second, a.second_per_channel, channel, second);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            weight[i] = widen(weights[i]) / Real(F::factor);
            bias[i] = widen(biases[i]);
            coefficients[i] = F::template prepare<Real>(first[i], second[i]);
        }
    }

    // `gain` is 1 outside of the coupled forms, where the compiler leaves the product out.
    __device__ Pack<T, width> function_of(const Pack<T, width>& x, Real gain) const {
        Pack<T, width> y;
#pragma unroll
        for (int i = 0; i < width; ++i) {
            Real f[1] = {widen(x.values[i]) * gain};
            const Real first[1] = {coefficients[i].first}, second[1] = {coefficients[i].second};
            F::apply(f, first, second);
            narrow(multiply_add(weight[i], f[0], bias[i]), &y.values[i]);
        }
        return y;
    }
};

template <class T, int width>
__device__ Pack<T, width> sum(const Pack<T, width>& a, const Pack<T, width>& b) {
    Pack<T, width> result;
#pragma unroll
    for (int i = 0; i < width; ++i) narrow(widen(a.values[i]) + widen(b.values[i]), &result.values[i]);
    return result;
}

// One pack of channels in kRowsAtOnce rows, `stride` rows apart; those behind the last are left out.
template <class F, class T, bool has_skip, int width, class Real>
__device__ void pack_of_rows(const Arguments<T>& a, const ThreadChannels<F, T, width>& channels, size_t pack,
                             size_t row, size_t stride, const Real (&gains)[kRowsAtOnce]) {
    using P = Pack<T, width>;
    const P* const x = reinterpret_cast<const P*>(a.x) + pack;
    const P* const skip = has_skip ? reinterpret_cast<const P*>(a.skip) + pack : nullptr;
    P* const y = reinterpret_cast<P*>(a.y) + pack;
    P* const residual = has_skip ? reinterpret_cast<P*>(a.residual) + pack : nullptr;
    P values[kRowsAtOnce], added[has_skip ? kRowsAtOnce : 1];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
        const size_t at = row + k * stride;
        if (at >= a.rows) break;
        values[k] = x[at * a.packs];
        if constexpr (has_skip) added[k] = skip[at * a.packs];
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
        const size_t at = row + k * stride;
        if (at >= a.rows) break;
        if constexpr (has_skip) {
            values[k] = sum(values[k], added[k]);
            residual[at * a.packs] = values[k];
        }
        y[at * a.packs] = channels.function_of(values[k], gains[k]);
    }
}

// Block (packs of channels, rows); grid likewise, its rows striding over the tensor. An output may be the
// buffer of an input: a thread reads what it will overwrite, and no other thread reads it.
template <class F, class T, bool has_skip, int width>
__global__ void __launch_bounds__(kThreads) elementwise(const Arguments<T> a) {
    const size_t pack = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pack >= a.packs) return;
    const ThreadChannels<F, T, width> channels(a, pack * width);
    typename RealOf<T>::type gains[kRowsAtOnce];
#pragma unroll
    for (auto& gain : gains) gain = 1;
    const size_t stride = size_t(gridDim.y) * blockDim.y;
    for (size_t row = size_t(blockIdx.y) * blockDim.y + threadIdx.y; row < a.rows;
         row += stride * kRowsAtOnce) {
        pack_of_rows<F, T, has_skip>(a, channels, pack, row, stride, gains);
    }
}

// 1 / sqrt(1 + the sum of a row's coupled channels' squares, each times its strength). A warp shares out the
// channels; every thread of it gets the result. An index that is none of a channel gives NaN: it lies on the
// device, where nobody can raise.
template <class T, bool has_skip>
__device__ typename RealOf<T>::type gain_of_row(const Arguments<T>& a, size_t row, size_t channels) {
    using Real = typename RealOf<T>::type;
    Real total = 0;
    for (size_t k = threadIdx.x % kWarp; k < a.coupled_count; k += kWarp) {
        const size_t c = size_t(a.coupled[k]), at = row * channels + c;
        Pack<T, 1> element{};
        if (c < channels) element.values[0] = a.x[at];
        if (has_skip && c < channels) element = sum(element, Pack<T, 1>{a.skip[at]});
        const Real value = widen(element.values[0]), square = value * value;
        const Real bounded = square > kLargestCoupledSquare ? kLargestCoupledSquare : square;
        total += c < channels ? a.strengths[k] * bounded : Real(NAN);
    }
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
    return two_over_root(1 + total) / 2;
}

// Block (packs of channels, rows), as wide as whole warps; the grid's rows stride over the tensor. A row is
// one block's, which finds its gain before writing anything: an output may be the buffer of an input.
template <class F, class T, bool has_skip, int width>
__global__ void __launch_bounds__(kThreads) coupled(const Arguments<T> a) {
    const size_t stride = size_t(gridDim.y) * blockDim.y;
    for (size_t first = size_t(blockIdx.y) * blockDim.y; first < a.rows; first += stride * kRowsAtOnce) {
        const size_t row = first + threadIdx.y;
        typename RealOf<T>::type gains[kRowsAtOnce] = {};
#pragma unroll
        for (int k = 0; k < kRowsAtOnce; ++k) {
            const size_t at = row + k * stride;
            if (at < a.rows) gains[k] = gain_of_row<T, has_skip>(a, at, a.packs * width);
        }
        __syncthreads();
        for (size_t pack = threadIdx.x; pack < a.packs; pack += blockDim.x) {
            const ThreadChannels<F, T, width> channels(a, pack * width);
            pack_of_rows<F, T, has_skip>(a, channels, pack, row, stride, gains);
        }
    }
}

// Blocks as wide as a row has packs, up to kThreads; rows until the processors are full, each block at most
// the tensor.
struct Shape {
    dim3 block;
    dim3 grid;
};

Shape launch_shape(size_t rows, size_t packs, bool whole_rows) {
    unsigned wide = whole_rows ? kWarp : 1;
    while (wide < packs && wide < kThreads) wide *= 2;
    const unsigned high = kThreads / wide;
    const size_t across = whole_rows ? 1 : (packs + wide - 1) / wide;
    const size_t down = (rows + high - 1) / high;
    int device = 0, processors = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    const size_t resident = size_t(processors) * (2048 / kThreads);
    const size_t fill = std::max<size_t>(1, resident / across);
    return {dim3(wide, high), dim3(unsigned(across), unsigned(std::min({down, fill, size_t(65535)})))};
}

template <class F, class T, int width>
const char* launch(const CudaCall& call) {
    const Tensors& t = call.tensors;
    const RawParameters& p = call.parameters;
    const Arguments<T> arguments{
        static_cast<const T*>(t.x),
        static_cast<const T*>(t.skip),
        static_cast<T*>(t.y),
        static_cast<T*>(t.residual),
        static_cast<const T*>(p.weight),
        static_cast<const T*>(p.bias),
        p.first,
        p.second,
        p.first_count != 1,
        p.second_count != 1,
        p.coupled,
        p.strengths,
        p.coupled_count,
        call.rows,
        call.channels / width,
    };
    const bool is_coupled = p.coupled_count > 0;
    const Shape shape = launch_shape(arguments.rows, arguments.packs, is_coupled);
    const auto stream = static_cast<cudaStream_t>(call.stream);
    const auto kernel = is_coupled ? t.skip ? coupled<F, T, true, width> : coupled<F, T, false, width>
                        : t.skip   ? elementwise<F, T, true, width>
                                   : elementwise<F, T, false, width>;
    kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class F, class T>
const char* launch_as_wide_as_aligned(const CudaCall& call) {
    constexpr int width = kBytes / sizeof(T);
    const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
    const Tensors& t = call.tensors;
    const RawParameters& p = call.parameters;
    const uintptr_t places = address(t.x) | address(t.skip) | address(t.y) | address(t.residual) |
                             address(p.weight) | address(p.bias) | address(p.first) | address(p.second);
    const bool aligned = places % kBytes == 0 && call.channels % width == 0;
    return aligned ? launch<F, T, width>(call) : launch<F, T, 1>(call);
}

template <class F>
const char* launch_for_type(const CudaCall& call) {
    switch (call.type) {
        case Type::Float: return launch_as_wide_as_aligned<F, float>(call);
        case Type::Half: return launch_as_wide_as_aligned<F, Half>(call);
        case Type::BFloat16: return launch_as_wide_as_aligned<F, BFloat16>(call);
        case Type::Double: return launch_as_wide_as_aligned<F, double>(call);
    }
    return "unknown type";
}

}  // namespace
}  // namespace dynorm::cuda

namespace dynorm {

const char* launch_on_cuda(const CudaCall& call) {
    // The form that serves all parameters: they are on the device, and memory is slower than either form.
    switch (call.function) {
#define DYNORM_CASE(F) \
    case Function::F: return cuda::launch_for_type<cuda::F::Anywhere>(call);
        DYNORM_FOR_EACH_FUNCTION(DYNORM_CASE)
#undef DYNORM_CASE
    }
    return "unknown function";
}

}  // namespace dynorm
