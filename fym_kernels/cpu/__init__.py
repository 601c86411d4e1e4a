"""CPU kernels that are mostly calls of torch's own GEMM and attention: registered under the ops' CPU key.

The C++ ones in csrc/cpu register themselves. Both exist only with the extension, which defines the ops.
"""

from __future__ import annotations

from fym_kernels import extension

if extension.CPU_LOADED:
    from fym_kernels.cpu import head_attention, low_rank  # noqa: F401
