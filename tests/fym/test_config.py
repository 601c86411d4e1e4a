"""The configuration: presets, precedence, every mistake reported at once, and files that read back equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fym.config import OPTIONS, Config
from fym.config_file import default_config, load_config, to_toml
from fym.errors import UserError
from fym.options import closest, get, options_of, tomllib
from fym.presets import PRESETS, resolve_preset


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


class TestPresets:
    def test_auto_follows_the_model(self):
        assert resolve_preset("auto", "embedded") == "tiny" and resolve_preset("auto", "wan") == "fast"
        assert load_config().preset == "tiny"
        assert load_config(None, {"model.path": "some/folder"}).preset == "fast"
        assert load_config(None, {"preset": "paper"}).temporal.steps == 2000

    def test_published_values(self):
        """The table of presets in the method: rank, alpha, steps, learning rate, weight decay."""
        for name, rank, steps, decay in (
            ("paper", 128, (3000, 2000), (0.01, 0.01)),
            ("fast", 16, (500, 500), (0.1, 0.5)),
        ):
            config = default_config("wan", name)
            for stage, count, weight_decay in zip(
                (config.spatial, config.temporal), steps, decay, strict=True
            ):
                assert (stage.rank, stage.alpha, stage.steps) == (rank, rank, count)
                assert (stage.learning_rate, stage.weight_decay) == (1e-4, weight_decay)

    def test_every_preset_value_is_an_option_and_allowed(self):
        for name, values in PRESETS.items():
            assert values.keys() <= OPTIONS.keys(), name
            for field, value in values.items():
                assert OPTIONS[field].convert(value) == value

    def test_defaults_are_allowed(self):
        for name, option in OPTIONS.items():
            assert option.convert(option.default) == option.default, name

    def test_defaults_are_not_shared(self):
        Config().generate.seeds.append(7)
        assert Config().generate.seeds == [0]


class TestPrecedence:
    def test_preset_file_options_assignments(self, tmp_path):
        file = tmp_path / "a.toml"
        file.write_text('preset = "paper"\n[temporal]\nrank = 8\nsteps = 10\nlearning_rate = 1\n')
        config = load_config(
            file, {"temporal.steps": 20, "spatial": {"rank": 4}}, ["temporal.learning_rate=2"]
        )
        assert (config.temporal.rank, config.temporal.steps, config.temporal.learning_rate) == (8, 20, 2.0)
        assert (config.temporal.alpha, config.spatial.rank, config.spatial.steps) == (128.0, 4, 3000)

    def test_list_of_assignments(self):
        config = load_config(
            None, ["tune.seed=3", "generate.prompts=['a b', \"c\"]", "clip.prompt=a red ball = good"]
        )
        assert config.tune.seed == 3 and config.generate.prompts == ["a b", "c"]
        assert config.clip.prompt == ["a red ball = good"]

    def test_text_becomes_the_type_of_the_field(self):
        config = load_config(
            None,
            [
                "temporal.debias=true",
                "generate.seeds=5",
                "heads.sigmas=[0.9, 0.5]",
                "heads.threshold=2",
                "output=7",
            ],
        )
        assert config.temporal.debias is True and config.generate.seeds == [5]
        assert config.heads.sigmas == [0.9, 0.5] and config.heads.threshold == 2.0 and config.output == "7"


class TestMistakes:
    def test_all_unknown_keys_with_the_nearest_name(self, tmp_path):
        file = tmp_path / "bad.toml"
        file.write_text("[temporal]\nsparse_frame = 9\n[tunes]\nseed = 1\n[clip]\nframez = 3\n")
        text = message(file, {"heads.treshold": 2}, ["lr=1", "sed=2"])
        assert "6 mistakes in the configuration" in text
        for key, near in (
            ("temporal.sparse_frame", "temporal.sparse_frames"),
            ("tunes", "tune"),
            ("clip.framez", "clip.frames"),
            ("heads.treshold", "heads.threshold"),
            ("lr", "spatial.learning_rate"),
            ("sed", "tune.seed"),
        ):
            assert f"unknown key {key} (did you mean {near}" in text
        assert f"Correct {file}" in text

    @pytest.mark.parametrize(
        ("assignment", "expected"),
        [
            ("tune.seed=abc", 'tune.seed = "abc": must be a whole number from 0'),
            ("tune.seed=1.5", "tune.seed = 1.5: must be a whole number"),
            ("tune.seed=true", "tune.seed = true: must be a whole number"),
            ("tune.seed=-1", "tune.seed = -1: must be"),
            ("temporal.debias=1", "temporal.debias = 1: must be true or false"),
            ("heads.rule=mas", "must be one of mass, cosine, topk (did you mean mass?)"),
            ("heads.sigmas=[0.5, 1.0]", "each must lie between 0 and 1"),
            ("heads.sigmas=[]", "must have at least one entry"),
            ("spatial.learning_rate=nan", "spatial.learning_rate = nan: must be a number, 0 or more"),
            ("temporal.sparse_frames=16", "take 13 or 17"),
            ("temporal.sparse_frames=0", "must be 4k+1 and at least 5"),
            ("clip.frames=80", "take 77 or 81"),
            ("clip.frames=1", "take 5 or 9"),
            ("clip.frames=9", "temporal.sparse_frames = 13: more than clip.frames = 9"),
            ("heads.rule=topk", "heads.topk = 0"),
            ("generate.temporal_scale=3", "must be a list, each entry a number from 0 to 2"),
            ("temporal.rank", "not of the form name=value"),
            ("spatial.rank=0", "must be a whole number, 1 or more"),
            ("spatial.rank=1" + 400 * "0", "must be a whole number, 1 or more"),
            ("spatial.alpha=1" + 400 * "0", "must be a number, 0 or more"),
            ("spatial.alpha=1" + 5000 * "0", "must be a number, 0 or more"),
            ("generate.seeds=" + 5000 * "[", "must be a list"),
        ],
    )
    def test_wrong_values(self, assignment, expected):
        assert expected in message(None, [assignment])

    def test_all_mistakes_of_all_sources_at_once(self, tmp_path):
        file = tmp_path / "a.toml"
        file.write_text("[tune]\nseed = -1\n")
        text = message(file, {"clip.start": -5, "foo": 1}, ["spatial.rank=x"])
        assert all(
            part in text
            for part in ("tune.seed", "clip.start", "unknown key foo", "spatial.rank", "4 mistakes")
        )

    def test_files_that_cannot_be_read(self, tmp_path):
        assert "there is no such file" in message(tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_text("[clip\npath = 3")
        text = message(tmp_path / "bad.toml")
        assert "is not a TOML file" in text and "line 1" in text
        assert "cannot be read" in message(tmp_path)

    def test_nearest_name(self):
        assert closest("temporal.rnak", OPTIONS) == "temporal.rank"
        assert closest("guidance", OPTIONS) == "generate.guidance_scale"
        assert closest("x", []) is None


class TestToml:
    @pytest.mark.parametrize("commented", [True, False])
    @pytest.mark.parametrize("preset", list(PRESETS))
    def test_reads_back_equal(self, tmp_path, preset, commented):
        config = default_config("some/folder", preset)
        config.generate.prompts = ['a "red" ball', "back\\slash\nand line", "ünïcode"]
        config.heads.sigmas = [0.9998, 0.5]
        file = tmp_path / "c.toml"
        file.write_text(to_toml(config, commented), encoding="utf-8")
        assert load_config(file) == config

    def test_every_field_stands_in_the_commented_file_with_its_help(self):
        text = to_toml(default_config(), commented=True)
        parsed = tomllib.loads(text)
        lines = text.splitlines()
        for name, option in OPTIONS.items():
            section = parsed
            for part in name.split(".")[:-1]:
                section = section[part]
            assert option.leaf in section, name
            assert f"# {option.help}" in text and len(option.help) > 8, name
        assert sum(" = " in line and not line.startswith("#") for line in lines) == len(OPTIONS)

    def test_options_are_the_dataclass_fields(self):
        """No field of any dataclass is left out of the table of options."""

        def count(cls) -> int:
            fields = dataclasses.fields(cls)
            nested = [f.default_factory for f in fields if dataclasses.is_dataclass(f.default_factory)]
            return len(fields) - len(nested) + sum(count(n) for n in nested)

        assert len(options_of(Config)) == count(Config) == len(OPTIONS)
        config = Config()
        assert all(get(config, name) == option.default for name, option in OPTIONS.items())

    @settings(deadline=None, max_examples=50)
    @given(
        prompt=st.text(st.characters(codec="utf-8")),
        seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1),
        scale=st.lists(st.floats(0, 2), min_size=1, max_size=1),
    )
    def test_any_text_survives(self, tmp_path_factory, prompt, seeds, scale) -> None:
        config = default_config()
        config.clip.prompt, config.generate.seeds, config.generate.temporal_scale = [prompt], seeds, scale
        file: Path = tmp_path_factory.getbasetemp() / "any.toml"
        file.write_bytes(to_toml(config).encode())
        assert load_config(file) == config
