"""`fym doctor`: the machine, the versions, the kernels that will run and why, and what to do if not right.

Nothing here may fail because something is broken: a package that does not import is a finding, not a crash.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fym.console import Console
from fym.machine import cores, cpu_flags, cpu_name, installed, memory_bytes, unmet

GIB = 1 << 30
LEAST_MEMORY = 4 * GIB  # the embedded model with room to spare
LEAST_DISK = 2 * GIB
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Distribution -> module. Imported for real where a broken binary is what usually goes wrong.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "av": "av",
    "opencv-python-headless": "cv2",
    "safetensors": "safetensors",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "peft": "peft",
    "rich": "rich",
    "click": "click",
    "tomli-w": "tomli_w",
    "matplotlib": "matplotlib",
}
IMPORTED = ("numpy", "torch", "av", "opencv-python-headless", "safetensors")
USEFUL = (
    "triton",
    "torchvision",
    "torchaudio",
    "torchao",
    "xformers",
    "accelerate",
    "bitsandbytes",
    "tensorboard",
)


@dataclass(frozen=True)
class Finding:
    """Something a user should know; `problem` means that something will not work."""

    level: str  # "problem" or "note"
    what: str
    fix: str


@dataclass
class Report:
    """All that was found; `as_dict` is what --json prints."""

    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    kernels: list[dict[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "problem"]

    def problem(self, what: str, fix: str) -> None:
        self.findings.append(Finding("problem", what, fix))

    def note(self, what: str, fix: str) -> None:
        self.findings.append(Finding("note", what, fix))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Console) -> None:
        console.table("Machine", list(self.machine.items()))
        console.table("Versions", list(self.versions.items()))
        if self.kernels:
            console.table("Kernels", [tuple(row.values()) for row in self.kernels])
        for finding in self.findings:
            console.info(f"{finding.level}: {finding.what}\n    {finding.fix}")
        if not self.problems:
            console.info("Everything needed is there.")


def examine() -> Report:
    """Looks at everything; takes a few seconds, because torch is imported."""
    report = Report()
    for look in (
        _python,
        _packages,
        _conflicts,
        _machine,
        _gpu,
        _video,
        _kernels,
        _model,
        _places,
        _environment,
    ):
        look(report)
    return report


def _python(report: Report) -> None:
    report.versions["python"] = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036 (doctor may be run from a checkout with any python)
        report.problem(
            "Python is older than 3.10", "Make the environment with a newer one: python3.11 -m venv .venv"
        )


def _packages(report: Report) -> None:
    for distribution, module in NEEDED.items():
        version = installed(distribution) or _any_opencv(distribution)
        if version is None:
            report.versions[distribution] = "missing"
            report.problem(f"{distribution} is not installed", f"pip install {distribution}")
            continue
        report.versions[distribution] = version
        if distribution in IMPORTED and (error := _import_error(module)):
            report.problem(
                f"{distribution} {version} does not import: {error}", _import_advice(distribution, error)
            )
    for distribution in USEFUL:
        version = installed(distribution)
        if version is not None:
            report.versions[distribution] = version


def _conflicts(report: Report) -> None:
    """Combinations that are known not to work together."""
    if installed("opencv-python") and installed("opencv-python-headless"):
        report.problem(
            "opencv-python and opencv-python-headless overwrite each other's files",
            "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless",
        )
    for distribution in ("fym", *NEEDED, *USEFUL):
        for need, version in unmet(distribution):
            wanted = f"{need.name}{need.specifier}"
            report.problem(
                f"{distribution} {installed(distribution)} needs {wanted}, {version} is installed",
                f'pip install "{wanted}", or another version of {distribution}',
            )


def _machine(report: Report) -> None:
    report.machine |= {"system": platform.platform(), "processor": f"{cpu_name()}, {cores()} cores"}
    flags = cpu_flags()
    if flags:
        report.machine["instructions"] = ", ".join(f for f in CPU_FLAGS if f in flags) or "no AVX2"
    memory = memory_bytes()
    if memory:
        report.machine["memory"] = f"{memory / GIB:.1f} GiB"
        if memory < LEAST_MEMORY:
            report.note(
                f"{memory / GIB:.1f} GiB of memory is little",
                "Use --frames, --height and --width to lower the need",
            )


def _gpu(report: Report) -> None:
    torch = _import("torch")
    if torch is None:
        return
    has_driver = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            names.append(f"{card.name} ({card.total_memory / GIB:.0f} GiB, sm_{card.major}{card.minor})")
        report.machine["gpu"] = ", ".join(names)
        if installed("triton") is None:
            report.note("Triton is missing, so the GPU kernels are not used", "pip install triton")
    elif has_driver and torch.version.cuda is None:
        report.machine["gpu"] = "present, unused"
        report.problem(
            "There is an NVIDIA card, but this torch is the CPU build",
            "Install the CUDA build; pytorch.org shows the pip command for each system",
        )
    elif has_driver:
        report.machine["gpu"] = "present, unused"
        report.problem(
            f"torch for CUDA {torch.version.cuda} cannot use the NVIDIA card",
            "Check that `nvidia-smi` works, then update the driver or install torch for an older CUDA",
        )
    else:
        report.machine["gpu"] = "none"


def _video(report: Report) -> None:
    av = _import("av")
    if av is not None and "libx264" not in av.codecs_available:
        report.problem(
            "PyAV has no libx264, so no mp4 can be written",
            "pip install --force-reinstall --only-binary av av",
        )


def _kernels(report: Report) -> None:
    try:
        import fym_kernels
        from fym_kernels import extension

        choices = fym_kernels.explain()
    except Exception as error:  # whatever is wrong with the extension belongs in the report
        report.problem(f"fym_kernels does not load: {_short(error)}", "pip install . (in the checkout)")
        return
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for choice in choices:  # dtypes that go the same way share a row
        rows.setdefault((choice.op, choice.device, choice.backend, choice.reason), []).append(choice.dtype)
    for (op, device, backend, reason), dtypes in rows.items():
        names = {
            "op": op,
            "device": device,
            "dtypes": ", ".join(dtypes),
            "backend": backend,
            "reason": reason,
        }
        report.kernels.append(names)
        if backend == "none":
            report.problem(
                f"No kernel for {op}: {reason}", "unset FYM_KERNELS_BACKEND, or name another backend"
            )
    if extension.CPU_LOADED:
        report.machine["C++ kernels"] = extension.cpu_isa()
    else:
        compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
        build = "pip install --no-build-isolation --no-deps --force-reinstall . (in the checkout)"
        report.note(
            "The C++ kernels are not built or do not load, so slower ones run",
            build if compiler else f"Install a C++ compiler (Debian: apt install g++), then {build}",
        )


def _model(report: Report) -> None:
    try:
        from fym.embedded import model_path

        folder = model_path()
        report.machine["embedded model"] = str(folder)
        if not (folder / "model_index.json").is_file():
            report.problem(
                "The embedded model is incomplete", "Install fym again: pip install --force-reinstall ."
            )
    except Exception as error:
        report.problem(
            f"No embedded model: {_short(error)}", "Install fym again: pip install --force-reinstall ."
        )


def _places(report: Report) -> None:
    free = shutil.disk_usage(".").free
    report.machine["free disk"] = f"{free / GIB:.1f} GiB here"
    if free < LEAST_DISK:
        report.problem(f"{free / GIB:.1f} GiB of disk is free here", "Free some, or work elsewhere with -o")
    if not os.access(".", os.W_OK):
        report.note("This folder cannot be written", "Run fym elsewhere, or give -o")


def _environment(report: Report) -> None:
    """Settings of the shell that change what runs, and are easily forgotten."""
    backend = os.environ.get("FYM_KERNELS_BACKEND")
    if backend:
        report.note(
            f"FYM_KERNELS_BACKEND={backend} overrides the choice of kernels", "unset FYM_KERNELS_BACKEND"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        report.note("TRITON_INTERPRET=1 makes Triton kernels very slow", "unset TRITON_INTERPRET")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) < cores():
        report.note(
            f"OMP_NUM_THREADS={threads} leaves cores idle ({cores()} are there)", "unset OMP_NUM_THREADS"
        )


def _any_opencv(distribution: str) -> str | None:
    others = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
    if distribution != "opencv-python-headless":
        return None
    return next((version for name in others if (version := installed(name))), None)


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises nearly anything
        return _short(error)
    return None


def _import_advice(distribution: str, error: str) -> str:
    if "libGL" in error:  # the desktop OpenCV on a server
        return "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
    return f"pip install --force-reinstall {distribution}"


def _import(module: str) -> Any:
    return None if _import_error(module) else importlib.import_module(module)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
