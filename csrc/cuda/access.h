// How the kernels touch global memory: inputs, which no kernel of the same launch writes, and outputs. The emulator in
// tests/emulator has a header of the same name, which checks every access.
#pragma once

namespace fym::gpu {

template <class T>
__device__ T read(const T* from) {
  return __ldg(from);
}

template <class T>
__device__ void write(T* to, T value) {
  *to = value;
}

// An assignment the compiler may split in four.
__device__ inline void write(uint4* to, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w));
}

}  // namespace fym::gpu
