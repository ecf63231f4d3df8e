// Chooses the kernel table for this processor, and prepares the channels' coefficients. Compiled for any
// processor.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "simd_portable.h"

#include "formulas.h"

namespace dynorm {

namespace portable {
extern const KernelTable table;
}
#ifdef DYNORM_WITH_X86
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef DYNORM_WITH_NEON
namespace neon {
extern const KernelTable table;
}
#endif

// Best last.
std::vector<const KernelTable*> runnable_tables() {
    std::vector<const KernelTable*> tables{&portable::table};
#ifdef DYNORM_WITH_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        tables.push_back(&avx2::table);
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        tables.push_back(&avx512::table);
    }
#endif
#ifdef DYNORM_WITH_NEON
    tables.push_back(&neon::table);
#endif
    return tables;
}

static const KernelTable& chosen_table() {
    const auto tables = runnable_tables();
    if (const char* wanted = std::getenv("DYNORM_ISA")) {
        for (const KernelTable* table : tables) {
            if (std::strcmp(table->name, wanted) == 0) return *table;
        }
    }
    return *tables.back();
}

const KernelTable& kernel_table() {
    static const KernelTable& table = chosen_table();
    return table;
}

const Signature& signature(Function function) {
#define DYNORM_SIGNATURE(F)   \
    {#F,                      \
     "Skip" #F,               \
     portable::F::parameters, \
     {portable::F::parameter_names[0], portable::F::parameter_names[1]}},
    static const Signature signatures[] = {DYNORM_FOR_EACH_FUNCTION(DYNORM_SIGNATURE)};
#undef DYNORM_SIGNATURE
    return signatures[int(function)];
}

size_t element_size(Type type) {
    switch (type) {
        case Type::Float: return 4;
        case Type::Half: return 2;
        case Type::BFloat16: return 2;
        case Type::Double: return 8;
    }
    return 0;
}

template <class Real>
static portable::Coefficients<Real> prepare(Function function, float first, float second) {
    switch (function) {
#define DYNORM_CASE(F) \
    case Function::F: return portable::F::prepare<Real>(first, second);
        DYNORM_FOR_EACH_FUNCTION(DYNORM_CASE)
#undef DYNORM_CASE
    }
    return {};
}

template <class Real, class T>
void PreparedChannels::fill(Function function, const RawParameters& raw, size_t channels,
                            Channels<Real>* view) {
    const size_t stride = channels + PerChannel<Real>::kPadding;
    memory_.assign((4 * stride * sizeof(Real) + sizeof(double) - 1) / sizeof(double), 0.0);
    Real* const weight = reinterpret_cast<Real*>(memory_.data());
    Real* const bias = weight + stride;
    Real* const first = bias + stride;
    Real* const second = first + stride;
    for (size_t c = 0; c < channels; ++c) {
        weight[c] = portable::widen(static_cast<const T*>(raw.weight)[c]);
        bias[c] = portable::widen(static_cast<const T*>(raw.bias)[c]);
        const float a = raw.first[raw.first_count == 1 ? 0 : c];
        const float b = raw.second ? raw.second[raw.second_count == 1 ? 0 : c] : 0.0f;
        const auto coefficients = prepare<Real>(function, a, b);
        first[c] = coefficients.first;
        second[c] = coefficients.second;
    }
    const auto masked = [&](const Real* values) {
        const bool equal = std::all_of(values, values + channels, [&](Real v) { return v == values[0]; });
        return PerChannel<Real>{values, equal ? size_t(0) : ~size_t(0)};
    };
    *view = {masked(weight), masked(bias), masked(first), masked(second), channels};
}

PreparedChannels::PreparedChannels(Function function, Type type, const RawParameters& raw, size_t channels)
    : real_is_double_(type == Type::Double) {
    switch (type) {
        case Type::Float: fill<float, float>(function, raw, channels, &floats_); break;
        case Type::Half: fill<float, Half>(function, raw, channels, &floats_); break;
        case Type::BFloat16: fill<float, BFloat16>(function, raw, channels, &floats_); break;
        case Type::Double: fill<double, double>(function, raw, channels, &doubles_); break;
    }
}

}  // namespace dynorm
