// How the compilers are told to inline and to unroll.
#pragma once

#ifdef __CUDACC__
#define DYNORM_INLINE __host__ __device__ inline __attribute__((always_inline))
#define DYNORM_UNROLL _Pragma("unroll")
#else
#define DYNORM_INLINE inline __attribute__((always_inline))
#define DYNORM_UNROLL _Pragma("GCC unroll 8")
#endif
