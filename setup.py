"""Builds the C++ kernels in csrc/ with torch's build helper and ninja. Everything else is in pyproject.toml.

FYM_BUILD=none  pure Python: the reference kernels.
FYM_BUILD=cpu   the CPU extension; a failure to build it is an error.
FYM_BUILD=cuda  the CPU and the CUDA extension.
unset           the CPU extension if torch and a compiler are there; else pure Python, and one line says so.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.errors import CompileError

TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: one build serves every later release
ROOT = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
BUILDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}

# without build isolation pip does not look at the version pyproject.toml asks for
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"fym: setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77', then again")


def say(text: str) -> None:
    if BUILDS & set(sys.argv):  # and not when pip only asks for the metadata, which it does first
        print(f"fym: {text}", file=sys.stderr, flush=True)


def import_build_helper():
    """torch.utils.cpp_extension, or None when no torch is installed.

    pip's isolated build hides the environment it installs into; that environment's torch is the one to
    build for, so its folder is looked at too, and no other torch is ever fetched.
    """
    for folder in (None, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if folder is not None and folder not in sys.path:
            sys.path.append(folder)
        try:
            from torch.utils import cpp_extension

            return cpp_extension
        except ImportError:
            continue
    return None


def find_compiler() -> str | None:
    """A C++ compiler that starts, also put where torch and setuptools look for it."""
    wanted = os.environ.get("CXX", "").split()
    for name in wanted[:1] or COMPILERS:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            os.environ.setdefault("CXX", name)
            return name
    return None


def find_ninja() -> None:
    """A venv that is not activated has ninja installed but not on the PATH."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        return
    os.environ["PATH"] = os.pathsep.join((BIN_DIR, os.environ.get("PATH", "")))


def cpu_extension(helper, required: bool) -> Extension:
    """fym_kernels/_C: no Python headers needed, nothing of Python's or of torch's unstable ABI used."""
    sources = [ROOT / "csrc/library.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    flags = [
        "-std=c++17",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-maybe-uninitialized",  # gcc 12 warns about its own AVX-512 header
        "-Wno-unused-parameter",  # as does torch's
    ]
    return helper.CppExtension(
        "fym_kernels._C",
        [str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)],
        extra_compile_args={"cxx": flags},
        py_limited_api=True,
        optional=not required,
    )


def build_command(helper):
    class Build(helper.BuildExtension):
        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except (RuntimeError, OSError) as error:  # what torch's ninja build raises
                if ext.optional:
                    say(f"{ext.name} did not compile: pure Python with the reference kernels")
                raise CompileError(str(error)) from error
            say(f"built {ext.name} with {os.environ['CXX']}")

    return Build


def extensions() -> dict:
    wish = os.environ.get("FYM_BUILD", "")
    if wish not in ("", "none", "cpu", "cuda"):
        sys.exit(f"fym: FYM_BUILD must be none, cpu or cuda, got {wish!r}")
    if wish == "none":
        say("FYM_BUILD=none: pure Python with the reference kernels")
        return {}
    if wish == "cuda" and not any((ROOT / "csrc/cuda").glob("*.cu")):
        sys.exit("fym: FYM_BUILD=cuda, but this version has no CUDA kernels: use FYM_BUILD=cpu")
    missing = ""
    if find_compiler() is None:
        missing = f"no working C++ compiler ($CXX, {', '.join(COMPILERS)})"
    elif (helper := import_build_helper()) is None:
        missing = "no torch to build against in this environment"
    if missing:
        if wish:
            sys.exit(f"fym: FYM_BUILD={wish}, but there is {missing}")
        say(f"{missing}: pure Python with the reference kernels; add it and install again for the C++ ones")
        return {}
    find_ninja()
    os.chdir(ROOT)
    abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
    return {
        "ext_modules": [cpu_extension(helper, required=bool(wish))],
        "cmdclass": {"build_ext": build_command(helper)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if abi3 else {},
    }


setup(**extensions())
