// What a CPU kernel is given, and how to get the kernel of this machine. Free of ONNX Runtime, so that the
// native tests can call the kernels under the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace dynorm {

// Every function there is. Each has a struct of its name in formulas.h; nothing else knows them one by one.
#define DYNORM_FOR_EACH_FUNCTION(use) use(DyISRU) use(DyT) use(Derf)

#define DYNORM_ENUMERATE(name) name,
enum class Function { DYNORM_FOR_EACH_FUNCTION(DYNORM_ENUMERATE) };
#undef DYNORM_ENUMERATE

#define DYNORM_COUNT(name) +1
inline constexpr int kFunctions = DYNORM_FOR_EACH_FUNCTION(DYNORM_COUNT);
#undef DYNORM_COUNT

// Which operator of a function: with the residual sum, with channels whose squares give every row a gain.
struct Form {
    bool skip;
    bool coupled;
};
inline constexpr Form kForms[] = {{false, false}, {false, true}, {true, false}, {true, true}};

// What the operators' signatures need to know.
struct Signature {
    const char* names[2][2];  // [skip][coupled]
    int parameters;
    const char* parameter_names[2];
};

const Signature& signature(Function function);

enum class Type { Float, Half, BFloat16, Double };
inline constexpr int kTypes = 4;

// Storage of the 16-bit types: they are only ever widened, computed on in float32, and rounded.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// One value for each channel, from a whole cache line on (a vector that straddles two takes twice as long to
// load), and padded so that a kernel may read a whole vector from any channel on. Where all are equal (one
// alpha for the tensor, a bias of zeros) the mask is 0 and every channel is read from the first vector: with
// few rows, reading the parameters is most of the work.
template <class Real>
struct PerChannel {
    static constexpr size_t kPadding = 16;

    const Real* values;
    size_t mask;

    const Real* from(size_t channel) const { return values + (channel & mask); }
};

// An element of a coupled channel counts as 1e15 at most: its square is a number in float32 still.
inline constexpr float kLargestCoupledSquare = 1e30f;

// The channels whose squares, each times its strength, stay in the sum that every row is divided by; none
// outside of the coupled forms. They are summed up kTogether at a time, so `count` is a multiple of it.
template <class Real>
struct Coupling {
    static constexpr size_t kTogether = 4;

    const size_t* channels;
    const Real* strengths;
    size_t count;
};

// Weight, bias and the function's coefficients in the type of the computation.
template <class Real>
struct Channels {
    PerChannel<Real> weight;
    PerChannel<Real> bias;
    PerChannel<Real> first;
    PerChannel<Real> second;
    Coupling<Real> coupling;
    size_t count;
    bool ordinary;  // prepared for the function itself, not for its form Anywhere
};

// One call: `elements` is a multiple of channels.count. Outputs may be the very buffers of the inputs (same
// start), since every vector is read before it is written. `skip` and `residual` are null outside the Skip
// forms.
struct Tensors {
    const void* x;
    const void* skip;
    void* y;
    void* residual;
    bool stream;  // y is larger than the caches: store past them
};

// Computes the elements [begin, end) of the flattened tensors, in the coupled forms whole rows: a row's gain
// is found before any of it is written over. `channels` is a Channels<float> or, for Type::Double, a
// Channels<double>.
using Kernel = void (*)(const Tensors& tensors, const void* channels, size_t begin, size_t end);

struct KernelTable {
    const char* name;
    Kernel kernels[kFunctions][kTypes][2][2];  // [..][..][skip][coupled]
};

// Weight and parameters of one operator as they come from the model.
struct RawParameters {
    const void* weight;  // [channels] of the tensor type
    const void* bias;    // [channels] of the tensor type
    const float* first;
    const float* second;  // null if the function has one parameter
    size_t first_count;   // 1 or channels
    size_t second_count;
    const int64_t* coupled = nullptr;  // [coupled_count] channels
    const float* strengths = nullptr;  // [coupled_count]
    size_t coupled_count = 0;          // 0 outside of the coupled forms
};

// The prepared form of RawParameters; owns its memory.
class PreparedChannels {
  public:
    PreparedChannels(Function function, Type type, const RawParameters& raw, size_t channels);
    // A Channels<float> or Channels<double> for Kernel, valid as long as this object lives.
    const void* get() const { return real_is_double_ ? static_cast<const void*>(&doubles_) : &floats_; }

  private:
    template <class Real, class T>
    void fill_for(Function function, const RawParameters& raw, size_t channels, Channels<Real>* view);
    template <class F, class Real, class T>
    void fill(const RawParameters& raw, size_t channels, Channels<Real>* view);
    template <class F, class Real, class T>
    void fill_as(const RawParameters& raw, size_t channels, Channels<Real>* view);

    bool real_is_double_;
    struct Free {
        void operator()(void* memory) const;
    };
    std::unique_ptr<void, Free> memory_;
    std::vector<size_t> coupled_;
    Channels<float> floats_{};
    Channels<double> doubles_{};
};

// The best table for this processor, chosen once. DYNORM_ISA=portable|avx2|avx512|neon asks for another; a
// name that this build or this processor lacks is ignored, as the default is always right.
const KernelTable& kernel_table();

// Every table that this processor can run, for tests.
std::vector<const KernelTable*> runnable_tables();

size_t element_size(Type type);

}  // namespace dynorm
