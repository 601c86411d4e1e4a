"""The doctor finds what is broken, says how to repair it, and never breaks itself."""

from __future__ import annotations

import json
import sys
import types
from importlib import metadata

import pytest
import torch

import fym_kernels
from fym import doctor, machine
from fym.cli import main


def examine(look) -> doctor.Report:
    report = doctor.Report()
    look(report)
    return report


def test_it_reports_this_machine(capsys):
    """A whole examination, as JSON for programs and as text."""
    code = main(["doctor", "--json"])
    seen = json.loads(capsys.readouterr().out)
    assert set(seen) == {"machine", "versions", "kernels", "findings"}
    assert seen["versions"]["torch"] == torch.__version__ and "cores" in seen["machine"]["processor"]
    assert code == (1 if any(f["level"] == "problem" for f in seen["findings"]) else 0)
    assert all(f["what"] and f["fix"] for f in seen["findings"])
    assert main(["doctor"]) == code
    text = capsys.readouterr().out
    assert "Machine" in text and torch.__version__ in text


def test_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "peft" else "1.0")
    report = examine(doctor._packages)
    assert [f.what for f in report.problems] == ["peft is not installed"]
    assert report.problems[0].fix == "pip install peft" and report.versions["peft"] == "missing"


def test_package_that_does_not_import(monkeypatch):
    """The desktop OpenCV on a server: the advice names the build without a display."""

    def broken(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return types.ModuleType(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    report = examine(doctor._packages)
    assert "libGL" in report.problems[0].what and "opencv-python-headless" in report.problems[0].fix


def test_versions_that_do_not_fit(monkeypatch):
    """torchvision is built for one torch: the usual cause of "operator torchvision::nms does not exist"."""
    needs = {"torchvision": ["torch==2.5.0", 'pillow>=5; extra == "x"', "numpy"]}
    monkeypatch.setattr(machine.metadata, "requires", lambda name: needs.get(name, []))
    monkeypatch.setattr(machine, "installed", lambda name: {"torch": "2.13.0+cpu", "numpy": "2.0"}.get(name))
    report = examine(doctor._conflicts)
    assert (
        len(report.problems) == 1 and "needs torch==2.5.0, 2.13.0+cpu is installed" in report.problems[0].what
    )


def test_build_label_is_no_conflict(monkeypatch):
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["torch==2.13.0", "torch>=2.6"])
    monkeypatch.setattr(machine, "installed", lambda name: "2.13.0+cpu")
    assert machine.unmet("torchvision") == []


def test_two_opencvs(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "5.0")
    monkeypatch.setattr(doctor, "unmet", lambda name: [])
    assert "overwrite each other" in examine(doctor._conflicts).problems[0].what


@pytest.mark.parametrize(("cuda", "expected"), [(None, "CPU build"), ("12.8", "cannot use the NVIDIA card")])
def test_card_that_torch_does_not_use(monkeypatch, cuda, expected):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert expected in examine(doctor._gpu).problems[0].what


def test_no_card_is_no_problem(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.Path, "exists", lambda self: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = examine(doctor._gpu)
    assert report.findings == [] and report.machine["gpu"] == "none"


def test_no_h264(monkeypatch):
    monkeypatch.setattr("av.codecs_available", {"gif"})
    assert "no mp4 can be written" in examine(doctor._video).problems[0].what


def test_settings_of_the_shell(monkeypatch):
    monkeypatch.setenv("FYM_KERNELS_BACKEND", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "cores", lambda: 8)
    report = examine(doctor._environment)
    assert report.problems == [] and len(report.findings) == 3
    assert all(f.fix.startswith("unset ") for f in report.findings)


def test_little_disk_and_memory(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 20))
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2 << 30)
    assert "0.0 GiB of disk" in examine(doctor._places).problems[0].what
    assert "is little" in examine(doctor._machine).findings[0].what


def test_broken_kernels_are_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "fym_kernels", None)
    assert "fym_kernels does not load" in examine(doctor._kernels).problems[0].what


@pytest.mark.parametrize("compiler", [None, "/usr/bin/g++"])
def test_kernels_that_are_not_built(monkeypatch, compiler):
    monkeypatch.setattr("fym_kernels.extension.CPU_LOADED", False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: compiler)
    note = next(f for f in examine(doctor._kernels).findings if f.level == "note")
    assert "pip install --no-build-isolation" in note.fix and ("apt install" in note.fix) == (
        compiler is None
    )


def test_kernels_and_why():
    """One row per op and backend; a backend that cannot run is a problem, named with its reason."""
    with fym_kernels.use_backend("reference"):
        rows = examine(doctor._kernels).kernels
    assert {row["op"] for row in rows} >= {"qk_norm_rope", "lora_qkv", "head_scores"}
    assert all(row["backend"] == "reference" and "asked for" in row["reason"] for row in rows)
    with fym_kernels.use_backend("cuda"):
        problems = examine(doctor._kernels).problems
    assert problems and "cuda" in problems[0].what


def test_facts():
    assert machine.cores() >= 1 and machine.cpu_name() and machine.memory_bytes() > 0
    assert (
        machine.installed("torch") == metadata.version("torch")
        and machine.installed("no-such-package") is None
    )
    assert machine.unmet("no-such-package") == []
