// Which instruction set the CPU kernels use: the best one this processor has, found once.
#pragma once

#include <cstdlib>
#include <cstring>

namespace fym {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

inline Isa detect_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

// FYM_KERNELS_ISA = portable, avx2, avx512 or avx512bf16 lowers the choice (it never raises it): for tests and
// for telling a kernel's fault from a processor's. Unknown names change nothing.
inline Isa best_isa() {
  static const Isa chosen = [] {
    const Isa most = detect_isa();
    const char* wish = std::getenv("FYM_KERNELS_ISA");
    const char* names[] = {"portable", "avx2", "avx512", "avx512bf16"};
    for (int i = 0; wish != nullptr && i < static_cast<int>(most); ++i)
      if (std::strcmp(wish, names[i]) == 0) return static_cast<Isa>(i);
    return most;
  }();
  return chosen;
}

}  // namespace fym
