"""The emulator itself: it runs right kernels right, and notices every fault it is there for."""

from __future__ import annotations

import ctypes

import emulated
import pytest
import torch

pytestmark = pytest.mark.skipif(
    emulated.COMPILER is None, reason="no C++ compiler to build the emulator with"
)
RIGHT = ("sum through shared memory", "sum by shuffles", "sum by shuffles down")
WRONG_NUMBERS = ("no barrier before reading", "no barrier before writing again")
NOTICED = {
    "barrier in a branch": "barrier that not every thread",
    "shuffle in a branch": "shuffle that not every lane",
    "read beyond the input": "read of memory that is not there",
    "write beyond the output": "write to memory that is not writable",
    "write to an input": "write to memory that is not writable",
    "misaligned vector": "misaligned access of 16 bytes",
    "write beyond shared memory": "beyond the block's shared memory",
}
KERNELS = (*RIGHT, *WRONG_NUMBERS, *NOTICED)  # in the order of faults.cpp


@pytest.fixture(scope="module")
def faults() -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulated.compile_shared(emulated.EMULATOR / "faults.cpp", with_torch=False)))
    library.run_fault.restype = ctypes.c_char_p
    return library


def run(faults: ctypes.CDLL, kernel: str, seed: int) -> tuple[str, bool]:
    """(what the emulator complains about, whether every thread has the sum of the 64 inputs)."""
    numbers, out = torch.randn(64), torch.full((64,), torch.nan)
    faults.emulator_seed(ctypes.c_uint64(seed))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (numbers, out))
    complaint = faults.run_fault(KERNELS.index(kernel), *pointers).decode()
    return complaint, bool(((out - numbers.sum()).abs() < 1e-4).all())


@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_are_right_in_any_order(faults, kernel: str) -> None:
    assert all(run(faults, kernel, seed) == ("", True) for seed in range(20))


@pytest.mark.parametrize("kernel", WRONG_NUMBERS)
def test_a_missing_barrier_shows_in_the_numbers(faults, kernel: str) -> None:
    """At any seed: 64 threads would have to run in the one harmless order."""
    assert all(run(faults, kernel, seed) == ("", False) for seed in range(20))


@pytest.mark.parametrize("kernel", NOTICED)
def test_what_the_hardware_forbids_is_reported(faults, kernel: str) -> None:
    assert NOTICED[kernel] in run(faults, kernel, 0)[0]
    assert run(faults, RIGHT[0], 0) == ("", True), "and does not stick"


def test_storage_types_round_as_torch_does(faults) -> None:
    values = torch.randn(20000) * 10.0 ** torch.randint(-9, 6, (20000,))
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65519.9, 65520.0, 6e-8, 2.9e-8, 3.4e38])
    ties = (torch.arange(2048) + 0.5).to(torch.float32)  # halfway between neighbours in both types
    values = torch.cat((values, special, ties, ties * 2.0**-30))
    got = torch.empty(2, len(values))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (values, got[0], got[1]))
    faults.round_trip(*pointers, len(values))
    assert torch.equal(got[0], values.bfloat16().float())
    assert torch.equal(got[1], values.half().float())
