// Calls the CPU kernels directly, without ONNX Runtime, so that the sanitizers see nothing else: every
// instruction set that this processor has, function, type and form, against the definitions in double.
//
//   test_kernels            shapes, unaligned and shared buffers, all values of the 16-bit types, every 4099th float32
//   test_kernels sweep N    every Nth float32 only; N = 1 is the whole range
//
// Prints the largest error of each float32 kernel; exits with 1 if a bound was not kept.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "kernels.h"
#define DYNORM_TARGET reference
#include "simd_portable.h"

using namespace dynorm;
using reference::narrow;
using reference::widen;

namespace {

constexpr double kFloatBound = 4e-7;
const char* const kFunctionNames[] = {"DyISRU", "DyT", "Derf"};
const char* const kTypeNames[] = {"float", "half", "bfloat16", "double"};
int failures = 0;

double exact(Function function, double x, double first, double second) {
    switch (function) {
        case Function::DyISRU: return std::isinf(x) ? std::copysign(1.0, x) : x / std::sqrt(first + x * x);
        case Function::DyT: return std::tanh(first * x);
        case Function::Derf: return std::erf(first * x + second);
    }
    return 0;
}

template <class T>
constexpr Type type_of() {
    if (std::is_same_v<T, float>) return Type::Float;
    if (std::is_same_v<T, Half>) return Type::Half;
    return std::is_same_v<T, BFloat16> ? Type::BFloat16 : Type::Double;
}

template <class T>
T rounded(double value) {
    T result;
    if constexpr (std::is_same_v<T, double>) {
        result = value;
    } else {
        narrow(float(value), &result);
    }
    return result;
}

// Two NaNs, or zeros, differ where their bits do.
template <class T>
bool same_bits(const T& a, const T& b) {
    std::array<unsigned char, sizeof(T)> of_a, of_b;
    std::memcpy(of_a.data(), &a, sizeof(T));
    std::memcpy(of_b.data(), &b, sizeof(T));
    return of_a == of_b;
}

// How many values of a 16-bit type lie between two.
template <class T>
int distance(T a, T b) {
    const auto place = [](T v) { return v.bits & 0x8000 ? -int(v.bits & 0x7fff) : int(v.bits); };
    return std::abs(place(a) - place(b));
}

// Whether y is close enough to weight f(x) + bias. Beside the bound on f there are a rounding of the sum,
// which shows where the two terms cancel, and near the smallest numbers the spacing of the type. In double,
// alpha x + shift may be rounded once or twice: `argument` is the size of its terms. In the coupled forms a
// `gain` of some roundings comes before both.
template <class T>
bool close(T y, double product, double bias, double argument, bool gain = false) {
    const double wanted = product + bias;
    if (std::isnan(wanted)) return std::isnan(double(widen(y)));
    const bool is_double = std::is_same_v<T, double>;
    const double terms = std::fabs(product) + std::fabs(bias);
    const double bound = (is_double ? 1e-15 * (terms + argument) : kFloatBound * terms + 3e-45) +
                         (gain ? (is_double ? 1e-15 : kFloatBound) * (std::fabs(product) + argument) : 0);
    const double error = std::fabs(double(widen(y)) - wanted);
    if constexpr (sizeof(T) == 2) {
        return distance(y, rounded<T>(wanted)) <= 1 || error <= bound;
    } else {
        return y == wanted || error <= bound;
    }
}

void fail(const KernelTable& table, Function function, Type type, const std::string& what) {
    std::printf("FAILED %s %s %s: %s\n", table.name, kFunctionNames[int(function)], kTypeNames[int(type)],
                what.c_str());
    ++failures;
}

// The parameters of one call; every channel has its own unless `shared`.
template <class T>
struct Parameters {
    std::vector<T> weight, bias;
    std::vector<float> first, second;
    std::vector<int64_t> coupled;
    std::vector<float> strengths;

    Parameters(size_t channels, bool shared, std::mt19937& random, size_t coupled_count = 0) {
        std::uniform_real_distribution<double> uniform(-2, 2);
        for (size_t c = 0; c < channels; ++c) {
            weight.push_back(rounded<T>(uniform(random)));
            bias.push_back(rounded<T>(uniform(random)));
        }
        for (size_t c = 0; c < (shared ? 1 : channels); ++c) {
            first.push_back(float(std::exp(uniform(random))));
            second.push_back(float(uniform(random)));
        }
        for (size_t k = 0; k < coupled_count; ++k) {
            coupled.push_back(int64_t(random() % channels));
            strengths.push_back(float(std::exp(uniform(random))));
        }
    }

    RawParameters raw(Function function) const {
        const float* shift = function == Function::Derf ? second.data() : nullptr;
        return {weight.data(), bias.data(),    first.data(),     shift,         first.size(),
                second.size(), coupled.data(), strengths.data(), coupled.size()};
    }

    // By which the elements of a row are multiplied; `row` is what stands there before.
    double gain(const T* row) const {
        double sum = 1;
        for (size_t k = 0; k < coupled.size(); ++k) {
            const double value = widen(row[coupled[k]]);
            sum += strengths[k] * value * value;
        }
        return 1 / std::sqrt(sum);
    }
};

// Where y and residual go: buffers of their own, or those of the inputs in either order.
enum class Outputs { Own, SameOrder, Crossed };

// One call over [begin, end) of rows x channels elements. The buffers have exactly the elements that the
// kernel may touch, `offset` elements after an aligned place, so that the sanitizer sees a step too far on
// either side.
template <class T>
void check_call(const KernelTable& table, Function function, Form form, size_t channels, size_t rows,
                size_t offset, bool shared, Outputs outputs, bool stream, std::mt19937& random) {
    constexpr size_t coupled_counts[] = {1, 3, 4, 5, 32, 100};
    const bool skip = form.skip;
    const Parameters<T> parameters(channels, shared, random, form.coupled ? coupled_counts[random() % 6] : 0);
    const size_t elements = channels * rows;
    std::normal_distribution<double> normal(0, 3);
    const auto buffer = [&] {
        std::unique_ptr<T[]> values(new T[elements + offset]);
        for (size_t i = 0; i < elements + offset; ++i) values[i] = rounded<T>(normal(random));
        return values;
    };
    const auto x = buffer(), s = buffer(), own_y = buffer(), own_residual = buffer();
    const std::vector<T> x_before(x.get() + offset, x.get() + offset + elements);
    const std::vector<T> s_before(s.get() + offset, s.get() + offset + elements);
    T* const y = (outputs == Outputs::Own                  ? own_y
                  : outputs == Outputs::SameOrder || !skip ? x
                                                           : s)
                     .get() +
                 offset;
    T* const residual = (outputs == Outputs::Own         ? own_residual
                         : outputs == Outputs::SameOrder ? s
                                                         : x)
                            .get() +
                        offset;

    const PreparedChannels prepared(function, type_of<T>(), parameters.raw(function), channels);
    const Tensors tensors{x.get() + offset, skip ? s.get() + offset : nullptr, y, skip ? residual : nullptr,
                          stream};
    const Kernel kernel = table.kernels[int(function)][int(type_of<T>())][skip][form.coupled];
    // Two pieces, the second beginning inside a row where it may.
    const size_t middle = form.coupled ? rows / 3 * channels : elements / 3;
    kernel(tensors, prepared.get(), 0, middle);
    kernel(tensors, prepared.get(), middle, elements);

    std::vector<T> values = x_before;
    for (size_t i = 0; skip && i < elements; ++i) {
        values[i] = rounded<T>(widen(x_before[i]) + widen(s_before[i]));
        if (!same_bits(values[i], residual[i])) {
            return fail(table, function, type_of<T>(), "residual differs at " + std::to_string(i));
        }
    }
    for (size_t i = 0; i < elements; ++i) {
        const size_t c = i % channels, p = shared ? 0 : c;
        const double value = parameters.gain(&values[i - c]) * widen(values[i]);
        const double f = exact(function, value, parameters.first[p], parameters.second[p]);
        const double weight = widen(parameters.weight[c]);
        const double argument =
            std::fabs(weight) * (std::fabs(parameters.first[p] * value) + std::fabs(parameters.second[p]));
        if (!close(y[i], weight * f, widen(parameters.bias[c]), argument, form.coupled)) {
            return fail(table, function, type_of<T>(),
                        "channels " + std::to_string(channels) + ", element " + std::to_string(i) + ": " +
                            std::to_string(double(widen(y[i]))));
        }
    }
}

template <class T>
void check_calls(const KernelTable& table, std::mt19937& random) {
    for (int function = 0; function < kFunctions; ++function) {
        for (const Form form : kForms) {
            for (const size_t channels : {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 768}) {
                for (const size_t offset : {0, 1, 3}) {
                    for (const auto outputs : {Outputs::Own, Outputs::SameOrder, Outputs::Crossed}) {
                        check_call<T>(table, Function(function), form, channels, 1 + random() % 9, offset,
                                      random() % 2, outputs, random() % 2, random);
                    }
                }
            }
        }
    }
}

// Tensors of more than 2^32 elements, of whose memory only the pages that are computed exist.
void check_beyond_32_bits(const KernelTable& table) {
    constexpr size_t channels = 1000,
                     elements = (size_t(1) << 32) + 7 * channels - (size_t(1) << 32) % channels;
    constexpr size_t bytes = elements * sizeof(Half), begin = elements - 2500;
    const auto reserve = [] {
        void* place =
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return place == MAP_FAILED ? nullptr : static_cast<Half*>(place);
    };
    Half* const x = reserve();
    Half* const y = reserve();
    if (!x || !y) {
        std::printf("no address space for tensors of more than 2^32 elements: not tested\n");
        return;
    }
    std::mt19937 random(3);
    const Parameters<Half> parameters(channels, false, random);
    const PreparedChannels prepared(Function::DyT, Type::Half, parameters.raw(Function::DyT), channels);
    for (size_t i = begin; i < elements; ++i) x[i] = rounded<Half>(double(i % 97) / 30 - 1.6);
    table.kernels[int(Function::DyT)][int(Type::Half)][0][0]({x, nullptr, y, nullptr, false}, prepared.get(),
                                                             begin, elements);
    for (size_t i = begin; i < elements; ++i) {
        const size_t c = i % channels;
        const double f = exact(Function::DyT, widen(x[i]), parameters.first[c], 0);
        if (!close(y[i], widen(parameters.weight[c]) * f, widen(parameters.bias[c]), 0)) {
            fail(table, Function::DyT, Type::Half, "element " + std::to_string(i));
            break;
        }
    }
    munmap(x, bytes);
    munmap(y, bytes);
}

// All 65536 values of a 16-bit type as x, weight 1 and bias 0.
template <class T>
void check_all_values(const KernelTable& table) {
    std::vector<T> x(65536), y(65536);
    for (size_t i = 0; i < x.size(); ++i) x[i].bits = uint16_t(i);
    const std::vector<T> weight{rounded<T>(1)}, bias{rounded<T>(0)};
    for (int function = 0; function < kFunctions; ++function) {
        for (const float first : {1.0f, 0.03f, 700.0f}) {
            const float shift = function == int(Function::Derf) ? 0.25f : 0.0f;
            const RawParameters raw{weight.data(), bias.data(), &first, shift != 0 ? &shift : nullptr, 1, 1};
            const PreparedChannels prepared(Function(function), type_of<T>(), raw, 1);
            const Tensors tensors{x.data(), nullptr, y.data(), nullptr, false};
            table.kernels[function][int(type_of<T>())][0][0](tensors, prepared.get(), 0, x.size());
            for (size_t i = 0; i < x.size(); ++i) {
                if (!close(y[i], exact(Function(function), widen(x[i]), first, shift), 0, 0)) {
                    return fail(table, Function(function), type_of<T>(), "value " + std::to_string(i));
                }
            }
        }
    }
}

// Parameters for the sweep: channel by channel over the range in which a parameter makes sense, and beyond it
// where `extreme`, for which some functions have another form.
float sweep_parameter(Function function, size_t channel, bool extreme, std::mt19937& random) {
    if (channel == 0) return 1.0f;
    const double decades = function != Function::DyISRU ? 6 : extreme ? 38 : 29.9;
    std::uniform_real_distribution<double> exponent(-decades, decades);
    return float(std::pow(10.0, exponent(random)));
}

// Every `step`th float32, the special values, and the largest relative error that they show.
void sweep(Function function, uint64_t step, bool extreme) {
    constexpr size_t channels = 4096;
    std::mt19937 random(7);
    std::vector<float> first, second, x(channels), y(channels);
    const std::vector<float> weight(channels, 1.0f), bias(channels, 0.0f);
    std::normal_distribution<float> normal(0, 1);
    for (size_t c = 0; c < channels; ++c) {
        first.push_back(sweep_parameter(function, c, extreme, random));
        second.push_back(function == Function::Derf && c % 2 ? normal(random) : 0.0f);
    }
    const bool derf = function == Function::Derf;
    const RawParameters raw{weight.data(), bias.data(), first.data(), derf ? second.data() : nullptr,
                            channels,      channels};
    const PreparedChannels prepared(function, Type::Float, raw, channels);
    const auto tables = runnable_tables();
    std::vector<double> largest(tables.size(), 0.0), wanted(channels);
    uint64_t bits = 0;
    while (bits < (uint64_t(1) << 32)) {
        for (size_t c = 0; c < channels; ++c, bits += step) {
            const uint32_t pattern = uint32_t(std::min<uint64_t>(bits, 0xffffffffu));
            x[c] = reference::bits_to_float(pattern);
            wanted[c] = exact(function, x[c], first[c], second[c]);
        }
        for (size_t t = 0; t < tables.size(); ++t) {
            const Tensors tensors{x.data(), nullptr, y.data(), nullptr, false};
            tables[t]->kernels[int(function)][int(Type::Float)][0][0](tensors, prepared.get(), 0, channels);
            for (size_t c = 0; c < channels; ++c) {
                if (!close(y[c], wanted[c], 0, 0)) {
                    char text[120];
                    std::snprintf(text, sizeof text, "f(%a; %a, %a) = %a, not %a", double(x[c]),
                                  double(first[c]), double(second[c]), double(y[c]), wanted[c]);
                    return fail(*tables[t], function, Type::Float, text);
                }
                if (std::fabs(wanted[c]) > std::numeric_limits<float>::min()) {
                    largest[t] = std::max(largest[t], std::fabs(double(y[c]) / wanted[c] - 1));
                }
            }
        }
    }
    for (size_t t = 0; t < tables.size(); ++t) {
        std::printf("%s %s float32%s: largest relative error %.2e\n", tables[t]->name,
                    kFunctionNames[int(function)], extreme ? ", any beta" : "", largest[t]);
    }
}

}  // namespace

int main(int count, char** arguments) {
    uint64_t step = 4099;
    if (count == 3 && std::string(arguments[1]) == "sweep") {
        step = std::strtoull(arguments[2], nullptr, 10);
    } else {
        std::mt19937 random(1);
        for (const KernelTable* table : runnable_tables()) {
            check_calls<float>(*table, random);
            check_calls<Half>(*table, random);
            check_calls<BFloat16>(*table, random);
            check_calls<double>(*table, random);
            check_beyond_32_bits(*table);
            check_all_values<Half>(*table);
            check_all_values<BFloat16>(*table);
        }
    }
    for (int function = 0; function < kFunctions; ++function) sweep(Function(function), step, false);
    sweep(Function::DyISRU, step, true);
    std::printf("%d failures\n", failures);
    return failures ? 1 : 0;
}
