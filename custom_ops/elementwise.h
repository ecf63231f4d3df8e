// The loop around a formula: any function, any type, with or without the residual sum, over any kind of
// lanes.
#pragma once

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

enum class Store { Cached, Streaming };

// One run of elements within one row; the pointers are at its first element.
template <class F, class T, bool has_skip, Store policy>
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

    DYNORM_INLINE Value function_of(Value value, size_t i) const {
        const size_t c = channel + i;
        const Value shift = F::parameters > 1 ? Lanes::load(channels.second.from(c)) : Value(0);
        const Value result = F::apply(value, Lanes::load(channels.first.from(c)), shift);
        return multiply_add(Lanes::load(channels.weight.from(c)), result, Lanes::load(channels.bias.from(c)));
    }

    static DYNORM_INLINE void put(T* to, Value value) {
        if constexpr (policy == Store::Streaming) {
            Lanes::store_streaming(to, value);
        } else {
            Lanes::store(to, value);
        }
    }

    DYNORM_INLINE void full(size_t i) const {
        Value value = Lanes::load(x + i);
        if constexpr (has_skip) {
            value = rounded_sum<Lanes, T>(value, Lanes::load(skip + i));
            put(residual + i, value);
        }
        put(y + i, function_of(value, i));
    }

    DYNORM_INLINE void partial(size_t i, size_t count) const {
        Value value = Lanes::load_partial(x + i, count);
        if constexpr (has_skip) {
            value = rounded_sum<Lanes, T>(value, Lanes::load_partial(skip + i, count));
            Lanes::store_partial(residual + i, value, count);
        }
        Lanes::store_partial(y + i, function_of(value, i), count);
    }

    void operator()(size_t count) const {
        size_t i = 0;
#pragma GCC unroll 2
        for (; i + Lanes::width <= count; i += Lanes::width) full(i);
        if (i < count) partial(i, count - i);
    }
};

template <class F, class T, bool has_skip, Store policy>
static void rows(const Tensors& tensors, const void* prepared, size_t begin, size_t end) {
    using Scalar = typename LanesOf<T>::type::Scalar;
    const auto& channels = *static_cast<const Channels<Scalar>*>(prepared);
    size_t channel = begin % channels.count;
    for (size_t i = begin; i < end;) {
        const size_t left_in_row = channels.count - channel;
        const size_t count = left_in_row < end - i ? left_in_row : end - i;
        const Run<F, T, has_skip, policy> run{
            static_cast<const T*>(tensors.x) + i,
            has_skip ? static_cast<const T*>(tensors.skip) + i : nullptr,
            static_cast<T*>(tensors.y) + i,
            has_skip ? static_cast<T*>(tensors.residual) + i : nullptr,
            channels,
            channel,
        };
        run(count);
        i += count;
        channel = 0;
    }
}

// Streaming stores want whole aligned vectors, so rows whose length is no multiple of a vector go through the
// caches.
template <class F, class T, bool has_skip>
static void kernel(const Tensors& tensors, const void* prepared, size_t begin, size_t end) {
    using Lanes = typename LanesOf<T>::type;
    const auto& channels = *static_cast<const Channels<typename Lanes::Scalar>*>(prepared);
    const uintptr_t places =
        reinterpret_cast<uintptr_t>(tensors.y) | reinterpret_cast<uintptr_t>(tensors.residual);
    const bool aligned = (places | begin * sizeof(T)) % (Lanes::width * sizeof(T)) == 0;
    if (tensors.stream && aligned && channels.count % Lanes::width == 0) {
        rows<F, T, has_skip, Store::Streaming>(tensors, prepared, begin, end);
        Lanes::finish_streaming();
    } else {
        rows<F, T, has_skip, Store::Cached>(tensors, prepared, begin, end);
    }
}

}  // namespace dynorm::DYNORM_TARGET
