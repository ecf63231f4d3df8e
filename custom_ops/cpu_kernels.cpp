// All CPU kernels for one instruction set. Compiled once for each, with that set's flags and DYNORM_TARGET=portable,
// avx2, avx512 or neon; only the table has external linkage.
#if defined(DYNORM_AVX512)
#define DYNORM_VECTOR
#include "simd_avx512.h"
#elif defined(DYNORM_AVX2)
#define DYNORM_VECTOR
#include "simd_avx2.h"
#elif defined(DYNORM_NEON)
#define DYNORM_VECTOR
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

#include "elementwise.h"

#define DYNORM_QUOTE_(x) #x
#define DYNORM_QUOTE(x) DYNORM_QUOTE_(x)
#define DYNORM_OF_FUNCTION(F)                                                                               \
    {                                                                                                       \
        {kernel<F, float, false>, kernel<F, float, true>}, {kernel<F, Half, false>, kernel<F, Half, true>}, \
            {kernel<F, BFloat16, false>, kernel<F, BFloat16, true>}, {                                      \
            kernel<F, double, false>, kernel<F, double, true>                                               \
        }                                                                                                   \
    }

namespace dynorm::DYNORM_TARGET {

extern const KernelTable table;
const KernelTable table = {
    DYNORM_QUOTE(DYNORM_TARGET),
    {DYNORM_OF_FUNCTION(DyISRU), DYNORM_OF_FUNCTION(DyT), DYNORM_OF_FUNCTION(Derf)},
};

}  // namespace dynorm::DYNORM_TARGET
