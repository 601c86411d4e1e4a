"""environment.json: one entry for each surroundings a run was in; determinism is set and given back."""

from __future__ import annotations

import json
import os

import torch

from fym import environment
from fym.environment import deterministic, record

CPU = torch.device("cpu")


def test_it_says_what_the_bits_depend_on(tmp_path):
    assert record(tmp_path, CPU, torch.float32) == []
    [go] = json.loads((tmp_path / "environment.json").read_text())
    assert go["versions"]["torch"] == torch.__version__ and go["threads"] >= 1
    assert go["cpu"] and go["device"] == "cpu" and go["dtype"] == "float32" and go["date"]
    assert set(go["kernels"]) >= {"qk_norm_rope", "lora_qkv", "motion_loss"}


def test_a_second_go_is_added_only_where_it_differs(tmp_path, monkeypatch):
    record(tmp_path, CPU, torch.float32)
    assert record(tmp_path, CPU, torch.float32) == []
    real = environment.installed
    monkeypatch.setattr(environment, "installed", lambda name: "0.0" if name == "peft" else real(name))
    [line] = record(tmp_path, CPU, torch.float32)
    assert line == f"versions.peft: {real('peft')} then, 0.0 now"
    assert record(tmp_path, CPU, torch.float32) == []
    goes = json.loads((tmp_path / "environment.json").read_text())
    assert [go["versions"]["peft"] for go in goes] == [real("peft"), "0.0"]


def test_a_record_that_cannot_be_read_is_begun_again(tmp_path):
    for text in ("", "{}", "[]", "[3]", "3"):
        (tmp_path / "environment.json").write_text(text)
        assert record(tmp_path, CPU, torch.float32) == []
        assert len(json.loads((tmp_path / "environment.json").read_text())) == 1


def test_determinism_ends_with_its_block(monkeypatch):
    monkeypatch.delenv(environment.CUBLAS, raising=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled() and environment.CUBLAS not in os.environ
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and os.environ[environment.CUBLAS] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled() and environment.CUBLAS not in os.environ
