// One file per op, compiled once per instruction set, chosen at run time.
//
// An op's file looks like this:
//
//     #ifdef FYM_ISA                        // the kernels, in terms of Vec
//     namespace fym::FYM_ISA { ... }
//     #else                                 // the ordinary compilation
//     #define FYM_KERNEL_FILE "this_file.cpp"
//     #include "vec.h"                      // includes this file again for every instruction set
//     ... binding, which calls FYM_DISPATCH(kernel<...>)(...)
//     #endif
//
// Vec holds Vec::width floats. Loads and stores convert from and to float, bf16 and half; sums are float32.
// Nothing here knows torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fym {

struct bf16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};

}  // namespace fym

#define FYM_ISA portable
#include "vec_portable.h"
#include "vec_partial.h"
#include FYM_KERNEL_FILE
#undef FYM_ISA

#if defined(__x86_64__)

#define FYM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FYM_TARGET(features) \
  FYM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FYM_TARGET_END FYM_PRAGMA(clang attribute pop)
#else
#define FYM_TARGET(features) FYM_PRAGMA(GCC push_options) FYM_PRAGMA(GCC target(features))
#define FYM_TARGET_END FYM_PRAGMA(GCC pop_options)
#endif

FYM_TARGET("avx2,fma,f16c")
#define FYM_ISA avx2
#include "vec_avx2.h"
#include "vec_partial.h"
#include FYM_KERNEL_FILE
#undef FYM_ISA
FYM_TARGET_END

FYM_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#define FYM_ISA avx512
#include "vec_avx512.h"
#include "vec_partial.h"
#include FYM_KERNEL_FILE
#undef FYM_ISA
FYM_TARGET_END

FYM_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#define FYM_ISA avx512bf16
#define FYM_HAS_BF16_CONVERSION
#include "vec_avx512.h"
#include "vec_partial.h"
#include FYM_KERNEL_FILE
#undef FYM_HAS_BF16_CONVERSION
#undef FYM_ISA
FYM_TARGET_END

// The address of a kernel, e.g. FYM_DISPATCH(row<float>), for the processor at hand.
#define FYM_DISPATCH(...)                                                 \
  (::fym::best_isa() == ::fym::Isa::avx512bf16 ? &avx512bf16::__VA_ARGS__ \
   : ::fym::best_isa() == ::fym::Isa::avx512   ? &avx512::__VA_ARGS__     \
   : ::fym::best_isa() == ::fym::Isa::avx2     ? &avx2::__VA_ARGS__       \
                                               : &portable::__VA_ARGS__)

#else
#define FYM_DISPATCH(...) (&portable::__VA_ARGS__)
#endif
