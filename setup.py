"""Builds the C++ kernels in csrc/ with torch's build helper and ninja. Everything else is in pyproject.toml.

FYM_BUILD=none  pure Python: the reference kernels.
FYM_BUILD=cpu   the CPU extension; a failure to build it is an error.
FYM_BUILD=cuda  the CPU and the CUDA extension, with any torch: it loads only into one that has CUDA.
unset           the CPU extension if torch and a compiler are there, and the CUDA one if nvcc and a CUDA
                torch are too; else pure Python, and one line says so. No GPU is needed to build.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.errors import CompileError

TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: one build serves every later release
ROOT = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
MACROS = [("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)]
# binaries for the GPUs the kernels were looked at for, and code that the driver compiles for later ones
CUDA_ARCHITECTURES = (80, 90, 100)
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
        define_macros=MACROS,
        extra_compile_args={"cxx": flags},
        py_limited_api=True,
        optional=not required,
    )


def find_nvcc() -> str | None:
    """nvcc of $CUDA_HOME, of the PATH, or where CUDA is usually installed.

    torch's own search finds nothing when torch is a CPU build.
    """
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        path = folder and shutil.which(os.path.join(folder, "bin", "nvcc"))
        if path:
            return path
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_extension(required: bool) -> Extension:
    """fym_kernels/_C_cuda: apart from _C, since it does not load into a torch without CUDA."""
    return Extension(
        "fym_kernels._C_cuda",
        [],  # torch's helper refuses .cu files when torch is a CPU build
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc/cuda").iterdir())],
        define_macros=[*MACROS, ("USE_CUDA", None)],
        py_limited_api=True,
        optional=not required,
    )


def compile_cuda(helper, nvcc: str, ext: Extension, output: Path, objects: Path) -> None:
    """nvcc by hand: torch's build helper has no nvcc when torch is a CPU build."""
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    numbers = [n for n in CUDA_ARCHITECTURES if f"compute_{n}" in known]
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    targets.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    macros = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in ext.define_macros]
    folders = [f"-I{folder}" for folder in helper.include_paths()]
    flags = ["-std=c++17", "-O3", "-Icsrc/cuda", *folders, *macros, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    objects.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> str:
        made = str(objects / f"{Path(source).stem}.o")
        subprocess.run([nvcc, *flags, *targets, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compile_one, (path for path in ext.depends if path.endswith(".cu"))))
    libraries = [f"-L{folder}" for folder in helper.library_paths()]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([nvcc, "-shared", *made, *libraries, "-o", str(output)], check=True)


def build_command(helper):
    class Build(helper.BuildExtension):
        def build_extension(self, ext):
            if ext.name.endswith("_C_cuda"):
                return self.build_cuda(ext)
            try:
                super().build_extension(ext)
            except (RuntimeError, OSError) as error:  # what torch's ninja build raises
                if ext.optional:
                    say(f"{ext.name} did not compile: pure Python with the reference kernels")
                raise CompileError(str(error)) from error
            say(f"built {ext.name} with {os.environ['CXX']}")
            return None

        def build_cuda(self, ext):
            nvcc = find_nvcc()
            try:
                output = Path(self.get_ext_fullpath(ext.name))
                compile_cuda(helper, nvcc, ext, output, Path(self.build_temp) / "cuda")
            except (subprocess.CalledProcessError, OSError) as error:
                if ext.optional:
                    say(f"{ext.name} did not compile: no CUDA C++ kernels")
                raise CompileError(str(error)) from error
            say(f"built {ext.name} with {nvcc}")

    return Build


def wants_cuda(wish: str) -> bool:
    """Whether to build the CUDA extension; ends the build when it was asked for and cannot be."""
    if wish == "cuda":
        if find_nvcc() is None:
            sys.exit("fym: FYM_BUILD=cuda, but there is no nvcc ($CUDA_HOME/bin, PATH, /usr/local/cuda/bin)")
        return True
    if wish:
        return False
    import torch

    if torch.version.cuda is None:
        return False
    if find_nvcc() is None:
        say("no nvcc: no CUDA C++ kernels, the Triton ones run on the GPU")
        return False
    return True


def extensions() -> dict:
    wish = os.environ.get("FYM_BUILD", "")
    if wish not in ("", "none", "cpu", "cuda"):
        sys.exit(f"fym: FYM_BUILD must be none, cpu or cuda, got {wish!r}")
    if wish == "none":
        say("FYM_BUILD=none: pure Python with the reference kernels")
        return {}
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
    modules = [cpu_extension(helper, required=bool(wish))]
    if wants_cuda(wish):
        modules.append(cuda_extension(required=bool(wish)))
    abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": build_command(helper)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if abi3 else {},
    }


setup(**extensions())
