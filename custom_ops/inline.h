// How the compilers are told to inline and to unroll.
#pragma once

#ifdef __CUDACC__
#define DYNORM_INLINE __host__ __device__ inline __attribute__((always_inline))
#define DYNORM_UNROLL _Pragma("unroll")
// Under the sanitizers their checks stand once for a function, not for every call of it.
#elif defined(DYNORM_NOT_INLINE)
#define DYNORM_INLINE inline
#define DYNORM_UNROLL
#else
#define DYNORM_INLINE inline __attribute__((always_inline))
#define DYNORM_UNROLL _Pragma("GCC unroll 8")
#endif
