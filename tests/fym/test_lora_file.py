"""A motion file from anywhere: whole and right, or refused with one sentence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from benchmarks.damage import damaged
from fym import cli
from fym.checkpoint import digest
from fym.errors import UserError
from fym.lora_file import serialise
from fym.lora_layouts import LAYOUTS
from fym.motion_file import load_motion_file, save_motion_file

ABOUT = {"model_id": "m", "model_hash": "h" * 64, "caption": "a ball", "kind": "temporal", "pair": "p"}
FIRST = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def whole(make_adapter) -> bytes:
    return serialise(make_adapter([[0, 2], []]), ABOUT)


def parts(data: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file and what follows it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | bytes, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def forged(data: bytes, tensors=None, **changes) -> bytes:
    """The file with another record and a digest that fits: what a forger or a faulty writer makes."""
    from safetensors.torch import load

    header, _ = parts(data)
    record = json.loads(header["__metadata__"]["fym"]) | changes
    record = {key: value for key, value in record.items() if key != "sha256" and value is not ...}
    tensors = load(data) if tensors is None else tensors
    record["sha256"] = digest(tensors, json.dumps(record, sort_keys=True))
    return save(tensors, metadata={"fym": json.dumps(record, sort_keys=True)})


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_motion_file(path)
    error = caught.value
    assert error.what and error.why and error.fix and "\n" not in str(error) and len(str(error)) < 1000
    return str(error)


class TestContainer:
    def test_what_is_no_safetensors_file(self, whole, tmp_path):
        torch.save({"x": torch.zeros(2)}, tmp_path / "zip.pt")
        torch.save({"x": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        header, rest = parts(whole)
        text = json.dumps(header).encode()
        twice = text.replace(b"blocks.0.self_attn.k.lora_A", b"blocks.0.self_attn.q.lora_A")
        beyond = json.loads(text)
        beyond[f"{FIRST}.lora_B.weight"]["data_offsets"] = [0, 10**15]
        negative = json.loads(text)
        negative[f"{FIRST}.lora_B.weight"]["shape"] = [-36, -3]
        for name, data, words in (
            ("empty", b"", "it is empty"),
            ("short", whole[:5], "not a safetensors file"),
            ("text", b"hello, this is a text", "not a safetensors file"),
            ("picture", b"\x89PNG\r\n\x1a\n" * 5, "not a safetensors file"),
            ("zip", b"PK\x03\x04" + bytes(50), "pickle or a zip"),
            ("pickle", b"\x80\x04\x95" + bytes(50), "pickle"),
            ("zip.pt", None, "pickle"),
            ("old.pt", None, "pickle"),
            ("loop", None, "symbolic links"),
            ("folder", None, "it is a folder"),
            ("pipe", None, "not an ordinary file"),
            ("gone", None, "no such file"),
            ("x" * 300, None, "too long"),
            ("nul\0", None, "null"),
            ("huge header", (2**40).to_bytes(8, "little") + b"{" + bytes(100), "claims 1099511627776 bytes"),
            ("large header", (90 << 20).to_bytes(8, "little") + b"{", "claims"),
            ("cut in the header", whole[:100], "cut off within its header"),
            ("cut in the tensors", whole[:-100], "not a motion file"),
            ("longer", whole + b"x", "not a motion file"),
            ("not utf-8", joined(text.replace(b"temporal", b"temp\xff\xfeal"), rest), "header is damaged"),
            ("not json", joined(text.replace(b":", b";", 3), rest), "header is damaged"),
            ("deep", joined(b'{"a":' * 100000 + b"1" + b"}" * 100000, rest), "header is damaged"),
            ("a list", joined(b"{}", b""), "no record of fym"),
            ("a name twice", joined(twice, rest), "names something twice"),
            ("outside the file", joined(beyond, rest), "not a motion file"),
            ("negative shape", joined(negative, rest), "not a motion file"),
        ):
            path = tmp_path / name
            if data is not None:
                path.write_bytes(data)
            assert words in message(path), name

    def test_a_sparse_file_of_many_gigabytes_is_not_read(self, whole, tmp_path):
        path = tmp_path / "large.safetensors"
        path.write_bytes(whole)
        os.truncate(path, 1 << 40)
        started = time.monotonic()
        assert "1024 GiB" in message(path) and time.monotonic() - started < 1

    def test_a_file_that_may_not_be_read(self, whole, tmp_path):
        path = tmp_path / "mine.safetensors"
        path.write_bytes(whole)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        assert "Permission denied" in message(path)


class TestRecord:
    """The record and the tensors must say the same, even where the digest was made to fit."""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"format": 2}, "not one of this version"),
            ({"heads": [[0, 1], []]}, "changes heads that are not in its head map"),
            ({"heads": [[0, 2], [1]]}, "blocks.1.self_attn.q.lora_A.weight is missing"),
            ({"heads": [[], [0, 2]]}, "blocks.1.self_attn.q.lora_A.weight is missing"),
            ({"heads": [[], []]}, "a layer that its header does not announce"),
            ({"heads": [[0, 7], []]}, "head map"),
            ({"heads": [[2, 0], []]}, "head map"),
            ({"heads": [[0, 0, 2], []]}, "head map"),
            ({"heads": [[0, 2.0], []]}, "head map"),
            ({"heads": [[True], []]}, "head map"),
            ({"heads": {"0": [0]}}, "head map"),
            ({"heads": [[0, 2], *[[]] * 10**6]}, "head map"),
            ({"heads": ...}, "head map"),
            ({"num_heads": 6}, "has the shape"),
            ({"num_heads": 0}, "num_heads in its header is 0"),
            ({"num_heads": -3, "head_dim": -12}, "num_heads in its header is -3"),
            ({"head_dim": 10**30}, "has the shape"),
            ({"rank": 10**9}, "has the shape"),
            ({"rank": "3"}, "rank in its header is '3'"),
            ({"rank": True}, "rank in its header is True"),
            ({"rank": ...}, "rank in its header is None"),
            ({"alpha": 3.0}, "alpha is 1.5, and its header says 3.0"),
            ({"alpha": float("nan")}, "alpha in its header is nan"),
            ({"alpha": 10**400}, "alpha in its header is"),
            ({"alpha": -1.5}, "alpha in its header is -1.5"),
            ({"targets": "qk"}, "targets in its header is 'qk'"),
            ({"targets": ["q"]}, "targets"),
            ({"targets": "qkv"}, "does not announce"),
            ({"compact": True}, "has the shape"),
            ({"kind": 3}, "kind in its header"),
            ({"pair": ...}, "pair in its header"),
            ({"model_hash": None}, "model_hash in its header"),
            ({"lowest_noise": "0.8"}, "lowest_noise"),
            ({"lowest_noise": 7}, "lowest_noise"),
            ({"guidance_scale": "4"}, "guidance_scale"),
            ({"guidance_scale": -1}, "guidance_scale"),
            ({"parts": 3}, "parts"),
            ({"parts": [{"rank": 2, "lowest_noise": 0}]}, "do not add up"),
            ({"parts": [{"rank": 3, "lowest_noise": 0, "scale": 10**400}]}, "parts"),
            ({"parts": [{"rank": 3, "lowest_noise": 0, "scale": "x"}]}, "parts"),
            ({"parts": [{"rank": 3, "lowest_noise": 0, "guidance_scale": "x"}]}, "parts"),
        ],
    )
    def test_contradictions_are_refused(self, whole, tmp_path, changes, words):
        path = tmp_path / "x.safetensors"
        path.write_bytes(forged(whole, **changes))
        assert words in message(path)

    def test_the_forger_of_these_tests_makes_good_files_too(self, whole, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes(forged(whole, caption="another"))
        assert load_motion_file(path).metadata["caption"] == "another"

    def test_records_that_are_none(self, whole, tmp_path):
        _, rest = parts(whole)
        for text in ("", "{", "[1]", "null", "3", '"fym"', "[" * 100000, '{"format": 1, "format": 1}'):
            header, _ = parts(whole)
            header["__metadata__"]["fym"] = text
            (tmp_path / "x.safetensors").write_bytes(joined(header, rest))
            message(tmp_path / "x.safetensors")
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
        assert "no record of fym" in message(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda t: t.update({f"{FIRST}.lora_A.weight": t[f"{FIRST}.lora_A.weight"] * float("nan")}),
                "finite",
            ),
            (lambda t: t[f"{FIRST}.lora_B.weight"].view(-1)[5:6].fill_(float("inf")), "finite"),
            (lambda t: t.update({f"{FIRST}.alpha": torch.tensor(float("nan"))}), "finite"),
            (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(3, 36, dtype=torch.int32)}), "int32"),
            (
                lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(3, 36, dtype=torch.float64)}),
                "float64",
            ),
            (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(36, 3)}), "has the shape (36, 3)"),
            (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(3, 36, 1)}), "has the shape"),
            (lambda t: t.update({f"{FIRST}.alpha": torch.ones(1)}), "has the shape (1,)"),
            (lambda t: t.pop(f"{FIRST}.alpha"), "is missing"),
            (lambda t: t.update({"diffusion_model.blocks.9.self_attn.q.alpha": torch.ones(())}), "announce"),
            (lambda t: t.update({"x" * 500: torch.ones(())}), "named in none of the layouts"),
            (lambda t: t[f"{FIRST}.lora_B.weight"][12:24].fill_(1), "not in its head map"),
        ],
    )
    def test_tensors_that_are_wrong(self, whole, tmp_path, change, words):
        from safetensors.torch import load

        tensors = load(whole)
        change(tensors)
        (tmp_path / "x.safetensors").write_bytes(forged(whole, tensors))
        assert words in message(tmp_path / "x.safetensors")

    def test_one_bit_of_a_value_is_told(self, whole, tmp_path):
        data = bytearray(whole)
        data[-3000] ^= 1
        (tmp_path / "x.safetensors").write_bytes(bytes(data))
        assert "checksum" in message(tmp_path / "x.safetensors")

    def test_files_from_before_the_digest_are_read(self, whole, tmp_path):
        header, rest = parts(whole)
        record = json.loads(header["__metadata__"]["fym"])
        del record["sha256"], record["compact"]
        header["__metadata__"]["fym"] = json.dumps(record)
        (tmp_path / "x.safetensors").write_bytes(joined(header, rest))
        assert load_motion_file(tmp_path / "x.safetensors").temporal.rank == 3


def test_alpha_is_the_same_for_diffusers(make_adapter, tmp_path):
    """It reads alpha from an entry of its own, which must not be another than the record's."""
    whole = serialise(make_adapter([[0, 2], [1]]), ABOUT, layout="diffusers")
    assert whole == serialise(make_adapter([[0, 2], [1]]), ABOUT, layout="diffusers")
    header, rest = parts(whole)
    peft = header["__metadata__"]["lora_adapter_metadata"]
    header["__metadata__"]["lora_adapter_metadata"] = peft.replace('lora_alpha": 1.5', 'lora_alpha": 15')
    (tmp_path / "x.safetensors").write_bytes(joined(header, rest))
    assert "where diffusers reads alpha" in message(tmp_path / "x.safetensors")


def test_every_command_refuses_with_code_2_and_without_a_traceback(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.safetensors").write_bytes(whole[:-7])
    for command in (["generate", "--prompt", "a", "--motion"], ["convert", "-o", "x.safetensors"]):
        assert cli.main([*command, "bad.safetensors"]) == 2
        out, err = capsys.readouterr()
        assert (
            out == ""
            and err.startswith("fym: bad.safetensors is not a motion file: ")
            and err.count("\n") == 1
        )
    assert os.listdir() == ["bad.safetensors"]


def test_a_broken_neighbour_is_named(tmp_path, make_adapter):
    path = tmp_path / "motion.safetensors"
    save_motion_file(path, make_adapter([[0], [0]]), make_adapter([[1], [1]]), ABOUT)
    path.with_name("spatial.safetensors").write_bytes(b"nothing")
    assert "spatial.safetensors is not a motion file" in message(path)


def outcomes(whole: bytes, folder: Path, count: int) -> dict[str, int]:
    """How `count` damaged versions end: refused, or read with every tensor as it was."""
    path, seen = folder / "x.safetensors", {"refused": 0, "read": 0, "not changed": 0}
    path.write_bytes(whole)
    good = load_motion_file(path)
    for number in range(count):
        data = damaged(whole, number)
        if data == whole:  # zeros over zeros, a figure that is drawn again
            seen["not changed"] += 1
            continue
        path.write_bytes(data)
        started = time.monotonic()
        try:
            found = load_motion_file(path)
        except UserError:
            seen["refused"] += 1
        else:
            assert found.metadata == good.metadata, number
            for one, other in zip(found.temporal.parameters(), good.temporal.parameters(), strict=True):
                assert torch.equal(one, other), number
            seen["read"] += 1
        assert time.monotonic() - started < 5, number
    return seen


@pytest.mark.parametrize("layout", ["fym", "diffusers", "kohya"])
def test_damage_is_refused(make_adapter, tmp_path, layout):
    """No traceback, no hang, no value that is not the written one. Only a change in the spaces that fill up
    the header can go unnoticed."""
    seen = outcomes(serialise(make_adapter([[0, 2], []]), ABOUT, layout=layout), tmp_path, 240)
    assert seen["refused"] > 230


@pytest.mark.slow
def test_damage_in_thousands(make_adapter, tmp_path, capsys):
    for layout in LAYOUTS["wan"]:
        seen = outcomes(serialise(make_adapter([[0, 2], []]), ABOUT, layout=layout), tmp_path, 2000)
        with capsys.disabled():
            print(f"\n{layout}: {seen}")
        assert seen["refused"] > 1990
