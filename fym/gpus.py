"""What named GPUs can do, from their makers' data sheets; what it is used for is always a prediction."""

from __future__ import annotations

import re
from typing import NamedTuple

from fym.errors import UserError

GB = 1e9


class Gpu(NamedTuple):
    """memory: bytes. flops: FLOP/s of dense bfloat16 products that are summed in float32. bandwidth: bytes/s
    of its memory; link: of its connection to the host, in one direction."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float


# NVIDIA: "Ada GPU Architecture" whitepaper v2.02, appendix A (RTX 4090); "Ampere GA102 GPU Architecture"
# whitepaper v2, appendix A (RTX 3090); the RTX 3060's product page, products by its 112 tensor cores at the
# GA102's rate; data sheets A100, H100 SXM, H200 SXM, HGX B200. Dense figures, half of those with sparsity.
# Links: PCIe 4.0 x16 and, from the H100 on, 5.0 x16, at four fifths of their nominal rates.
GPUS = {
    "rtx3060": Gpu("RTX 3060 12 GB", 12 * GB, 25.5e12, 0.360e12, 25e9),
    "rtx3090": Gpu("RTX 3090", 24 * GB, 71.2e12, 0.936e12, 25e9),
    "rtx4090": Gpu("RTX 4090", 24 * GB, 165.2e12, 1.008e12, 25e9),
    "a100-40": Gpu("A100 40 GB", 40 * GB, 312e12, 1.555e12, 25e9),
    "a100-80": Gpu("A100 80 GB", 80 * GB, 312e12, 2.039e12, 25e9),
    "h100": Gpu("H100 SXM", 80 * GB, 989e12, 3.35e12, 50e9),
    "h200": Gpu("H200 SXM", 141 * GB, 989e12, 4.8e12, 50e9),
    "b200": Gpu("B200", 180 * GB, 2250e12, 8.0e12, 50e9),
}


def named(text: str) -> tuple[Gpu, int]:
    """The GPU, and how many of it, that a text like "rtx4090" or "2xrtx4090" names. UserError for others."""
    found = re.fullmatch(r"(?:([1-9]\d{0,3})x)?(.*)", text)
    if found is None or found[2] not in GPUS:
        known = ", ".join(GPUS)
        raise UserError(f"{text!r} is no known GPU", f"known are {known}", "Write one of them, or 2xrtx4090")
    return GPUS[found[2]], int(found[1] or 1)
