// The loop around a formula: any function, any type, with or without the residual sum and the gain of coupled
// channels, over any kind of lanes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "formulas.h"
#include "kernels.h"

namespace dynorm::DYNORM_TARGET {

// How a kernel reads and writes: one element at a time in Real, ...
template <class Real>
struct ScalarLanes {
    using Value = Real;
    using Scalar = Real;
    static constexpr size_t width = 1;

    template <class T>
    static Value load(const T* from) {
        return widen(*from);
    }
    template <class T>
    static Value load_partial(const T* from, size_t) {
        return widen(*from);
    }
    template <class T>
    static void store(T* to, Value value) {
        narrow(value, to);
    }
    template <class T>
    static void store_partial(T* to, Value value, size_t) {
        narrow(value, to);
    }
    template <class T>
    static void store_streaming(T* to, Value value) {
        narrow(value, to);
    }
    static void finish_streaming() {}
};

#ifdef DYNORM_VECTOR
// ... or a vector of floats.
struct VectorLanes {
    using Value = Vector;
    using Scalar = float;
    static constexpr size_t width = Vector::width;

    template <class T>
    static Value load(const T* from) {
        return DYNORM_TARGET::load(from);
    }
    template <class T>
    static Value load_partial(const T* from, size_t count) {
        return DYNORM_TARGET::load_partial(from, count);
    }
    template <class T>
    static void store(T* to, Value value) {
        DYNORM_TARGET::store(to, value);
    }
    template <class T>
    static void store_partial(T* to, Value value, size_t count) {
        DYNORM_TARGET::store_partial(to, value, count);
    }
    template <class T>
    static void store_streaming(T* to, Value value) {
        DYNORM_TARGET::store_streaming(to, value);
    }
    static void finish_streaming() { DYNORM_TARGET::finish_streaming(); }
};
using FloatLanes = VectorLanes;
#else
using FloatLanes = ScalarLanes<float>;
#endif

template <class T>
struct LanesOf {
    using type = FloatLanes;
};
template <>
struct LanesOf<double> {
    using type = ScalarLanes<double>;
};

// The sum as the tensor type holds it: the function must see what a separate Add would have handed to it.
template <class Lanes, class T>
static inline typename Lanes::Value rounded_sum(typename Lanes::Value x, typename Lanes::Value skip) {
    const auto sum = x + skip;
    if constexpr (sizeof(T) >= sizeof(float)) {
        return sum;
    } else {
        T rounded[Lanes::width];
        Lanes::store(rounded, sum);
        return Lanes::load(rounded);
    }
}

// For each of neighbouring rows 1 / sqrt(1 + the sum of the coupled channels' squares, each times its
// strength); x and skip are at the first row's first element. Four sums go side by side, one for each row, or
// four of a single row: none waits for its own last addition, and the compiler has lanes for them.
template <class T, bool has_skip, int row_count, class Real>
static void find_gains(const Channels<Real>& channels, const T* x, const T* skip, Real (&gains)[row_count]) {
    using Sums __attribute__((vector_size(Coupling<Real>::kTogether * sizeof(Real)))) = Real;
    constexpr int count = Coupling<Real>::kTogether, strands = count / row_count;
    const Coupling<Real> coupling = channels.coupling;
    const Sums largest = Real(kLargestCoupledSquare) - Sums{};
    Sums sums{};
    for (size_t k = 0; k < coupling.count; k += strands) {
        Sums values, strengths;
        DYNORM_UNROLL
        for (int i = 0; i < count; ++i) {
            const size_t place = coupling.channels[k + i % strands] + i / strands * channels.count;
            Real value = widen(x[place]);
            if constexpr (has_skip) value = rounded_sum<ScalarLanes<Real>, T>(value, widen(skip[place]));
            values[i] = value;
        }
        if constexpr (strands == 1) {
            strengths = coupling.strengths[k] - Sums{};
        } else {
            std::memcpy(&strengths, coupling.strengths + k, sizeof strengths);
        }
        const Sums squares = values * values;
        sums += strengths * (squares > largest ? largest : squares);  // false for NaN, which stays
    }
    DYNORM_UNROLL
    for (int row = 0; row < row_count; ++row) {
        Real total = 1;
        for (int strand = 0; strand < strands; ++strand) total += sums[row * strands + strand];
        gains[row] = 1 / std::sqrt(total);
    }
}

enum class Store { Cached, Streaming };

// How many rows go side by side, so that a channel's coefficients are loaded once for all of them, and the
// processor fetches as many streams ahead; in a single row, how many vectors. Scalars are left to the
// compiler, which makes vectors of a plain loop.
template <class Lanes>
inline constexpr int kAtOnce = Lanes::width > 1 ? 4 : 1;

// The same run of channels in `row_count` neighbouring rows; the pointers are at its first element.
template <class F, class T, bool has_skip, bool coupled, Store policy, int row_count>
struct Run {
    using Lanes = typename LanesOf<T>::type;
    using Value = typename Lanes::Value;
    using Scalar = typename Lanes::Scalar;

    const T* x;
    const T* skip;
    T* y;
    T* residual;
    Channels<Scalar> channels;
    size_t channel;  // of the first element
    Value gains[coupled ? row_count : 1];

    static DYNORM_INLINE void put(T* to, Value value) {
        if constexpr (policy == Store::Streaming) {
            Lanes::store_streaming(to, value);
        } else {
            Lanes::store(to, value);
        }
    }

    // `columns` vectors in each row, from element i on. All is read before anything is stored: a load right
    // behind a store to an address of the same last 12 bits, as the rows' often are, would wait for it.
    template <int columns, class Load, class Save>
    DYNORM_INLINE void block(size_t i, const Load& load, const Save& save) const {
        constexpr int n = row_count * columns;
        Value weight[n], bias[n], first[n], second[n], values[n];
        size_t place[n];
        DYNORM_UNROLL
        for (int k = 0; k < n; ++k) {
            const size_t column = i + size_t(k % columns) * Lanes::width, c = channel + column;
            place[k] = column + size_t(k / columns) * channels.count;
            weight[k] = Lanes::load(channels.weight.from(c));
            bias[k] = Lanes::load(channels.bias.from(c));
            first[k] = Lanes::load(channels.first.from(c));
            second[k] = F::parameters > 1 ? Lanes::load(channels.second.from(c)) : Value(0);
            values[k] = load(x + place[k]);
            if constexpr (has_skip) values[k] = rounded_sum<Lanes, T>(values[k], load(skip + place[k]));
        }
        if constexpr (has_skip) {
            DYNORM_UNROLL
            for (int k = 0; k < n; ++k) save(residual + place[k], values[k]);
        }
        if constexpr (coupled) {
            DYNORM_UNROLL
            for (int k = 0; k < n; ++k) values[k] = values[k] * gains[k / columns];
        }
        F::apply(values, first, second);
        DYNORM_UNROLL
        for (int k = 0; k < n; ++k) save(y + place[k], multiply_add(weight[k], values[k], bias[k]));
    }

    DYNORM_INLINE void operator()(size_t count) const {
        const auto load = [](const T* from) { return Lanes::load(from); };
        size_t i = 0;
        if constexpr (row_count == 1 && kAtOnce<Lanes> > 1) {
            constexpr size_t step = kAtOnce<Lanes> * Lanes::width;
            for (; i + step <= count; i += step) block<kAtOnce<Lanes>>(i, load, put);
        }
        for (; i + Lanes::width <= count; i += Lanes::width) block<1>(i, load, put);
        if (const size_t rest = count - i) {
            block<1>(
                i, [=](const T* from) { return Lanes::load_partial(from, rest); },
                [=](T* to, Value value) { Lanes::store_partial(to, value, rest); });
        }
    }
};

// The elements [begin, end): what is left of a row, whole rows side by side, what remains.
template <class F, class T, bool has_skip, bool coupled, Store policy>
static void rows(const Tensors& tensors, const void* prepared, size_t begin, size_t end) {
    using Lanes = typename LanesOf<T>::type;
    const auto& channels = *static_cast<const Channels<typename Lanes::Scalar>*>(prepared);
    const auto run = [&](auto row_count, size_t i, size_t channel, size_t count) {
        Run<F, T, has_skip, coupled, policy, row_count> these{
            static_cast<const T*>(tensors.x) + i,
            has_skip ? static_cast<const T*>(tensors.skip) + i : nullptr,
            static_cast<T*>(tensors.y) + i,
            has_skip ? static_cast<T*>(tensors.residual) + i : nullptr,
            channels,
            channel,
            {},
        };
        if constexpr (coupled) {
            typename Lanes::Scalar gains[row_count];
            find_gains<T, has_skip>(channels, these.x, these.skip, gains);
            for (int k = 0; k < row_count; ++k) these.gains[k] = typename Lanes::Value(gains[k]);
        }
        these(count);
    };
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, kAtOnce<Lanes>> many;
    size_t channel = begin % channels.count;
    for (size_t i = begin; i < end;) {
        if (channel == 0 && end - i >= many * channels.count) {
            run(many, i, 0, channels.count);
            i += many * channels.count;
        } else {
            const size_t count = std::min(channels.count - channel, end - i);
            run(one, i, channel, count);
            i += count;
            channel = 0;
        }
    }
}

// Streaming stores want whole aligned vectors, so rows whose length is no multiple of a vector go through the
// caches.
template <class F, class T, bool has_skip, bool coupled>
static void kernel(const Tensors& tensors, const void* prepared, size_t begin, size_t end) {
    using Lanes = typename LanesOf<T>::type;
    const auto& channels = *static_cast<const Channels<typename Lanes::Scalar>*>(prepared);
    if constexpr (!std::is_same_v<F, typename F::Anywhere>) {
        if (!channels.ordinary) {
            return kernel<typename F::Anywhere, T, has_skip, coupled>(tensors, prepared, begin, end);
        }
    }
    const uintptr_t places =
        reinterpret_cast<uintptr_t>(tensors.y) | reinterpret_cast<uintptr_t>(tensors.residual);
    const bool aligned = (places | begin * sizeof(T)) % (Lanes::width * sizeof(T)) == 0;
    if (tensors.stream && aligned && channels.count % Lanes::width == 0) {
        rows<F, T, has_skip, coupled, Store::Streaming>(tensors, prepared, begin, end);
        Lanes::finish_streaming();
    } else {
        rows<F, T, has_skip, coupled, Store::Cached>(tensors, prepared, begin, end);
    }
}

}  // namespace dynorm::DYNORM_TARGET
