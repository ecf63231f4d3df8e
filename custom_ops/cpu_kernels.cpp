// All CPU kernels for one instruction set. Compiled once for each, with that set's flags and
// DYNORM_TARGET=portable, avx2, avx512 or neon; only the table has external linkage.
#if defined(DYNORM_AVX512)
#define DYNORM_VECTOR
#include "tables_avx512.h"
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
#define DYNORM_BOTH_FORMS(F, T, skip) {kernel<F, T, skip, false>, kernel<F, T, skip, true>}
#define DYNORM_ALL_FORMS(F, T) {DYNORM_BOTH_FORMS(F, T, false), DYNORM_BOTH_FORMS(F, T, true)}
#define DYNORM_ALL_TYPES(F)                                                                \
    {DYNORM_ALL_FORMS(F, float), DYNORM_ALL_FORMS(F, Half), DYNORM_ALL_FORMS(F, BFloat16), \
     DYNORM_ALL_FORMS(F, double)},

namespace dynorm::DYNORM_TARGET {

extern const KernelTable table;
const KernelTable table = {
    DYNORM_QUOTE(DYNORM_TARGET),
    {DYNORM_FOR_EACH_FUNCTION(DYNORM_ALL_TYPES)},
};

}  // namespace dynorm::DYNORM_TARGET
