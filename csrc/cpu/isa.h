// Which instruction set the CPU kernels use: the best one this processor has.
#pragma once

#include <algorithm>
#include <atomic>

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

// The highest instruction set allowed, for tests and for telling a kernel's fault from a processor's.
inline std::atomic<int>& isa_limit() {
  static std::atomic<int> limit{static_cast<int>(Isa::avx512bf16)};
  return limit;
}

inline Isa best_isa() {
  static const int detected = static_cast<int>(detect_isa());
  return static_cast<Isa>(std::min(detected, isa_limit().load(std::memory_order_relaxed)));
}

}  // namespace fym
