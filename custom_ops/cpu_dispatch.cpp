// Chooses the kernel table for this processor, and prepares the channels' coefficients. Compiled for any
// processor.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

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
    // Exactly what each is compiled for. A virtual machine may hide any of them without the others.
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
    if (has_avx2) tables.push_back(&avx2::table);
    if (has_avx512) tables.push_back(&avx512::table);
#endif
#ifdef DYNORM_WITH_NEON
    tables.push_back(&neon::table);
#endif
    return tables;
}

static const KernelTable* chosen_table() {
    const auto tables = runnable_tables();
    if (const char* wanted = std::getenv("DYNORM_ISA")) {
        for (const KernelTable* table : tables) {
            if (std::strcmp(table->name, wanted) == 0) return table;
        }
    }
    return tables.back();
}

// Threads that come first together choose the same. A static of the function would make them wait for one
// another, and for ever in a child that was forked meanwhile.
const KernelTable& kernel_table() {
    static std::atomic<const KernelTable*> chosen{nullptr};
    const KernelTable* table = chosen;
    if (!table) chosen = table = chosen_table();
    return *table;
}

const Signature& signature(Function function) {
#define DYNORM_SIGNATURE(F)                               \
    {{{#F, "Coupled" #F}, {"Skip" #F, "SkipCoupled" #F}}, \
     portable::F::parameters,                             \
     {portable::F::parameter_names[0], portable::F::parameter_names[1]}},
    static const Signature signatures[] = {DYNORM_FOR_EACH_FUNCTION(DYNORM_SIGNATURE)};
#undef DYNORM_SIGNATURE
    return signatures[int(function)];
}

size_t element_size(Type type) {
    switch (type) {
        case Type::Float: return 4;
        case Type::Half:
        case Type::BFloat16: return 2;
        case Type::Double: return 8;
    }
    return 0;
}

constexpr size_t kCacheLine = 64;

void PreparedChannels::Free::operator()(void* memory) const {
    ::operator delete(memory, std::align_val_t{kCacheLine});
}

namespace {

// The parameters of a channel, whether given one by one or once for all.
struct FunctionParameters {
    const RawParameters& raw;

    float first(size_t c) const { return raw.first[raw.first_count == 1 ? 0 : c]; }
    float second(size_t c) const { return raw.second ? raw.second[raw.second_count == 1 ? 0 : c] : 0.0f; }
};

}  // namespace

template <class F>
static bool all_ordinary(const FunctionParameters& parameters, size_t channels) {
    for (size_t c = 0; c < channels; ++c) {
        if (!F::ordinary(parameters.first(c), parameters.second(c))) return false;
    }
    return true;
}

template <class F, class Real, class T>
void PreparedChannels::fill(const RawParameters& raw, size_t channels, Channels<Real>* view) {
    if (all_ordinary<F>({raw}, channels)) {
        fill_as<F, Real, T>(raw, channels, view);
        view->ordinary = true;
    } else {
        fill_as<typename F::Anywhere, Real, T>(raw, channels, view);
    }
}

template <class F, class Real, class T>
void PreparedChannels::fill_as(const RawParameters& raw, size_t channels, Channels<Real>* view) {
    constexpr size_t line = kCacheLine / sizeof(Real);
    const size_t stride = (channels + PerChannel<Real>::kPadding + line - 1) / line * line;
    constexpr size_t together = Coupling<Real>::kTogether;
    const size_t coupled = (raw.coupled_count + together - 1) / together * together;
    const size_t size = 4 * stride + coupled;
    memory_.reset(::operator new(size * sizeof(Real), std::align_val_t{kCacheLine}));
    Real* const weight = static_cast<Real*>(memory_.get());
    std::fill_n(weight, size, Real(0));
    Real* const bias = weight + stride;
    Real* const first = bias + stride;
    Real* const second = first + stride;
    Real* const strengths = second + stride;
    std::copy_n(raw.strengths, raw.coupled_count, strengths);
    // What fills up the last few has no strength and is a channel that counts already: another one's NaN would
    // make the sum NaN all the same.
    coupled_.assign(raw.coupled, raw.coupled + raw.coupled_count);
    coupled_.resize(coupled, coupled ? coupled_[0] : 0);
    const FunctionParameters parameters{raw};
    for (size_t c = 0; c < channels; ++c) {
        weight[c] = portable::widen(static_cast<const T*>(raw.weight)[c]) / Real(F::factor);
        bias[c] = portable::widen(static_cast<const T*>(raw.bias)[c]);
        const auto coefficients = F::template prepare<Real>(parameters.first(c), parameters.second(c));
        first[c] = coefficients.first;
        second[c] = coefficients.second;
    }
    const auto masked = [&](const Real* values) {
        const bool equal = std::all_of(values, values + channels, [&](Real v) { return v == values[0]; });
        return PerChannel<Real>{values, equal ? size_t(0) : ~size_t(0)};
    };
    const Coupling<Real> coupling{coupled_.data(), strengths, coupled};
    *view = {masked(weight), masked(bias), masked(first), masked(second), coupling, channels, false};
}

template <class Real, class T>
void PreparedChannels::fill_for(Function function, const RawParameters& raw, size_t channels,
                                Channels<Real>* view) {
    switch (function) {
#define DYNORM_CASE(F) \
    case Function::F: return fill<portable::F, Real, T>(raw, channels, view);
        DYNORM_FOR_EACH_FUNCTION(DYNORM_CASE)
#undef DYNORM_CASE
    }
}

PreparedChannels::PreparedChannels(Function function, Type type, const RawParameters& raw, size_t channels)
    : real_is_double_(type == Type::Double) {
    switch (type) {
        case Type::Float: fill_for<float, float>(function, raw, channels, &floats_); break;
        case Type::Half: fill_for<float, Half>(function, raw, channels, &floats_); break;
        case Type::BFloat16: fill_for<float, BFloat16>(function, raw, channels, &floats_); break;
        case Type::Double: fill_for<double, double>(function, raw, channels, &doubles_); break;
    }
}

}  // namespace dynorm
