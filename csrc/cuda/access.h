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

}  // namespace fym::gpu
