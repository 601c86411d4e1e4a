"""The run: nothing is done twice, nothing is lost, and who does it makes no difference.

The model is tiny and random and the scores are a digest of the clip, so that equal scores mean equal clips.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fym.errors import UserError
from fym.motionbench import run as runner
from fym.motionbench.case import Case
from fym.motionbench.judge import Judge
from fym.motionbench.methods import TunedMethod
from fym.motionbench.results import Results
from fym.motionbench.run import run
from fym.motionbench.suite import cases
from fym.motionbench.units import Bench, Options, claimed

FYM = (
    "fym spatial.steps=2,temporal.steps=3,temporal.sparse_frames=9,spatial.rank=2,temporal.rank=2,"
    "heads.rule=topk,heads.topk=3,tune.checkpoint_every=1,temporal.learning_rate=0.03"
)
METHODS = ("base", FYM)
NAMES = ("object/spiral", "object/hook")

# The command with the scores of this test; its workers import it too.
PROGRAM = """
import sys
from pathlib import Path
from test_run import NAMES, digest
from fym.motionbench.judge import Judge
from fym.motionbench.run import run
from fym.motionbench.units import Options

Judge.scores = digest
if __name__ == "__main__":
    folder, model, workers, *methods = sys.argv[1:]
    out, results = Path(folder) / "out", Path(folder) / "results"
    sys.exit(run(Options(out, results, tuple(methods), names=NAMES, model=model, workers=int(workers))))
"""


def digest(self: Judge, clip: torch.Tensor, case: Any, target: Any) -> dict[str, Any]:
    value = int(hashlib.sha256(clip.numpy().tobytes()).hexdigest()[:8], 16)
    return {"exact": {"cosine": value}, "metrics": {}}


@pytest.fixture
def scored_by_digest(monkeypatch):
    monkeypatch.setattr(Judge, "scores", digest)


@pytest.fixture(scope="module")
def options(tiny_wan) -> Callable[..., Options]:
    def make(folder: Path, **changes: Any) -> Options:
        made = Options(folder / "out", folder / "results", METHODS, names=NAMES, model=str(tiny_wan()))
        return replace(made, **changes)

    return make


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """A folder with an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "scores", digest)
        assert run(options(folder)) == 0
    return folder


def start(folder: Path, model: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join((os.getcwd(), str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, str(program), str(folder), str(model), str(workers), *METHODS],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def rows(folder: Path, *, cost: bool = False) -> list[dict[str, Any]]:
    """All results, without what they cost."""
    results = Results(folder / "results")
    found = [row for method in results.methods() for row in results.read(method)]
    return found if cost else [{k: v for k, v in row.items() if k != "cost"} for row in found]


def lines(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (folder / "results").glob("*.jsonl"))


def test_every_clip_has_a_result_that_says_where_it_is_from(whole: Path) -> None:
    found = rows(whole, cost=True)
    assert len(found) == lines(whole) == 2 * (3 * 3 + 2 * 3 * 2)  # cases, controls, methods, targets, seeds
    assert {row["method"] for row in found} == {"reference", "frozen", "reversed", *METHODS}
    origins = whole / "results" / "origins"
    for row in found:
        assert (origins / f"{row['settings']}.toml").is_file()
        about = json.loads((origins / f"{row['code']}.json").read_text())
        assert about["packages"]["torch"].startswith(torch.__version__.split("+")[0])
        tuned = row["method"] == FYM
        assert set(row["cost"]) == (
            {"cache", "classify", "spatial", "temporal", "sample"}
            if tuned
            else ({"sample"} if row["method"] == "base" else set())
        )
        assert all(len(cost) == 3 and min(cost) >= 0 for cost in row["cost"].values())
    assert "heads.topk" not in (origins / f"{found[0]['settings']}.toml").read_text()
    clips = list((whole / "out").glob("fym*/*/t*-s*.mp4"))
    assert len(clips) == 12 and len(list((whole / "out").glob("fym*/*/run/motion.safetensors"))) == 2
    assert not list((whole / "out").glob("fym*/*/run/checkpoints"))


def test_prompts_seeds_and_tuned_cases_make_other_clips(whole: Path) -> None:
    """Without tuning, a prompt that two cases share makes the same clip."""
    made = {(row["method"], row["case"], row["prompt"], row["seed"]): row["exact"] for row in rows(whole)}
    tuned = [score["cosine"] for (method, *_), score in made.items() if method == FYM]
    base = {key[2:]: score["cosine"] for key, score in made.items() if key[0] == "base"}
    assert len(set(tuned)) == 12 and len(set(base.values())) == len(base)
    assert not set(tuned) & set(base.values())


def test_case_by_case(options, tmp_path: Path) -> None:
    order = [(case.name, method.name) for method, case in Bench(options(tmp_path)).units]
    methods = ["reference", "frozen", "reversed", *METHODS]
    assert order == [(name, method) for name in NAMES for method in methods]


def test_the_results_folder_alone_is_enough_to_go_on(
    options, whole: Path, tmp_path: Path, monkeypatch, scored_by_digest
) -> None:
    """Without clips nothing is done again; of a lost line only that clip, to the same result."""
    shutil.copytree(whole / "results", tmp_path / "results")
    done: list[Any] = []
    real = Bench.do
    monkeypatch.setattr(
        Bench, "do", lambda self, unit, missing, add: done.append(missing) or real(self, unit, missing, add)
    )
    assert run(options(tmp_path)) == 0 and done == []
    path = Results(tmp_path / "results").path(FYM)
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:4] + text[5:]))
    assert run(options(tmp_path)) == 0
    assert done == [[(2, 0)]]
    assert rows(tmp_path) == rows(whole)


def test_more_seeds_add_only_what_is_new(options, whole: Path, tmp_path: Path, scored_by_digest) -> None:
    shutil.copytree(whole / "results", tmp_path / "results")
    before = rows(tmp_path)
    assert run(options(tmp_path, methods=("base",), seeds=3)) == 0
    after = rows(tmp_path)
    assert len(after) == len(before) + 6 and all(row in after for row in before)


def test_another_model_is_another_result(
    options, tiny_wan, whole: Path, tmp_path: Path, scored_by_digest
) -> None:
    shutil.copytree(whole / "results", tmp_path / "results")
    other = options(tmp_path, methods=("base",), model=str(tiny_wan(seed=1)), names=NAMES[:1])
    assert run(other) == 0
    assert lines(tmp_path) == lines(whole) + 6  # the controls have no model


def test_killed_in_the_middle_it_goes_on_to_the_same_end(
    options, tiny_wan, whole: Path, tmp_path: Path, scored_by_digest
) -> None:
    """Killed without warning while it tunes, it resumes from the last step and the last line."""
    process = start(tmp_path, tiny_wan())
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("fym*/*/run/checkpoints/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < lines(tmp_path) < lines(whole)
    assert run(options(tmp_path)) == 0
    assert rows(tmp_path) == rows(whole)
    assert lines(tmp_path) == lines(whole)


def test_processes_share_the_work_and_change_nothing(tiny_wan, whole: Path, tmp_path: Path) -> None:
    """A command with two workers, and the same command once more beside it."""
    started = [start(tmp_path, tiny_wan(), workers) for workers in (2, 1)]
    assert [process.wait(240) for process in started] == [0, 0]
    assert rows(tmp_path) == rows(whole)
    assert lines(tmp_path) == lines(whole)


def test_a_failed_case_is_noted_and_tried_again(
    options, whole: Path, tmp_path: Path, monkeypatch, scored_by_digest
) -> None:
    real = TunedMethod.tune

    def broken(self, model, case, folder):
        if case.name == NAMES[0]:
            raise RuntimeError(f"{folder}/run is bad")
        return real(self, model, case, folder)

    for attempt in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(TunedMethod, "tune", broken)
            assert run(options(tmp_path)) == 1
        failures = Results(tmp_path / "results").failures(FYM)
        assert [failure["attempt"] for failure in failures] == list(range(1, attempt + 1))
    assert failures[0]["case"] == NAMES[0] and failures[0]["error"] == "RuntimeError: run is bad"
    assert failures[0]["traceback"][-1].endswith(" broken")
    assert len(rows(tmp_path)) == len(rows(whole)) - 6
    assert run(options(tmp_path)) == 0
    assert rows(tmp_path) == rows(whole)


def test_a_diverging_tuning_is_a_failure_and_not_the_end(options, tmp_path: Path, scored_by_digest) -> None:
    wild = f"{FYM},temporal.learning_rate=1e30"
    assert run(options(tmp_path, methods=(wild, "base"), names=NAMES[:1])) == 1
    [failure] = Results(tmp_path / "results").failures(wild)
    assert "The loss is not a number" in failure["error"] and failure["traceback"][-1].startswith("stage.py:")
    assert not list((tmp_path / "out").glob("fym*/*/run"))  # the next try starts anew
    assert "base" in Results(tmp_path / "results").methods()


def test_what_others_are_at_is_left_to_them(options, tmp_path: Path, monkeypatch, scored_by_digest) -> None:
    chosen = options(tmp_path, methods=("base",), names=NAMES[:1])
    bench = Bench(chosen)
    code = (
        "import sys; from pathlib import Path; from fym.motionbench.units import claimed\n"
        "with claimed(Path(sys.argv[1])) as mine:\n    print(mine, flush=True); sys.stdin.read()"
    )
    folder = bench.folder(bench.units[-1])
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert other.stdout is not None and other.stdout.readline() == b"True\n"
    assert run(chosen) == 0
    assert "base" not in Results(tmp_path / "results").methods()
    other.kill()
    other.wait()
    with claimed(folder) as mine:
        assert mine
    assert run(chosen) == 0
    assert "base" in Results(tmp_path / "results").methods()


def test_mistakes_show_before_anything_is_done(options, tmp_path: Path) -> None:
    for changes, message in (
        ({"methods": ("fym temporal.rank=none",)}, "temporal.rank"),
        ({"names": ("object/nothing",)}, "no case"),
        ({"category": "camera", "names": NAMES}, "nothing to run"),
    ):
        with pytest.raises(UserError, match=message):
            run(options(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_scores_of_a_control(tmp_path: Path, monkeypatch) -> None:
    """With the real scores: the reference is perfect but for its look, and moves like no other case."""
    [case] = cases(names=["object/spiral"])
    judge = Judge([case, *cases(names=["object/hook"])], Case.clip)
    clip = case.clip()[0]
    score = judge.scores(clip, case, case.targets[0])
    assert score["exact"]["cosine"] > 0.95
    for name in ("motion_fidelity/two_way", "direction", "speed_ratio"):
        assert score["metrics"][name] == pytest.approx(1.0, abs=0.01)
    assert score["metrics"]["text_alignment"] == 0.0
    assert score["shuffled"]["cosine"] < 0.5 and score["shuffled"]["direction"] < 0.5


def test_other_references_are_the_next_of_the_category(options, tmp_path: Path) -> None:
    every = [case for case in cases(part="synthetic") if case.category == "object"]
    judge = Judge(every, Case.clip)
    assert judge.others(every[0]) == every[1:4]
    assert judge.others(every[-1]) == every[:3]
    assert judge.others(every[-2]) == [every[-1], *every[:2]]


def test_a_filmed_clip_is_scored_as_the_model_sees_it(options, tmp_path: Path, scored_by_digest) -> None:
    """Cropped to the model's size and cut to its length, for the reference row and for all others."""
    from fym.video import read_clip, write_clip

    folder = tmp_path / "own"
    frames = torch.randint(0, 255, (30, 40, 60, 3), dtype=torch.uint8)
    write_clip(folder / "a.mp4", frames, 8)
    made = {"name": "a", "file": "a.mp4", "prompt": "noise", "targets": ["b", "c", "d"]}
    (folder / "manifest.json").write_text(json.dumps({"dataset": "own", "version": "1", "cases": [made]}))
    chosen = options(tmp_path, methods=("base",), part="real", names=("own/a",), folders=(str(folder),))
    assert run(chosen) == 0
    [reference] = {row["reference"] for row in rows(tmp_path)}
    clip = read_clip(next((tmp_path / "out").glob("reference-*/own-a/t0-s0.mp4"))).frames
    assert clip.shape == (17, 32, 48, 3) and len(reference) == 10


@pytest.mark.slow
def test_ray_on_two_nodes_makes_the_same_results(options, tiny_wan, tmp_path: Path) -> None:
    """Two nodes of one processor each on this machine, with the real scores; failures are the same too."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fym[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    broken = f"{FYM},temporal.learning_rate=1e30"
    chosen = {"methods": (*METHODS, broken), "names": NAMES, "seeds": 1}
    (tmp_path / "serial").mkdir()
    assert run(options(tmp_path / "serial", **chosen)) == 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        assert run(options(tmp_path / "ray", engine="ray", **chosen)) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert rows(tmp_path / "ray") == rows(tmp_path / "serial")
    serial, shared = (Results(tmp_path / name / "results").failures(broken) for name in ("serial", "ray"))
    assert len(serial) == len(shared) == 2
    assert {f["case"]: f["error"] for f in serial} == {f["case"]: f["error"] for f in shared}


def test_the_command_line(options, tmp_path: Path, monkeypatch) -> None:
    from fym.cli import main

    given: list[Options] = []
    monkeypatch.setattr(runner, "run", lambda chosen: given.append(chosen) or 1)
    arguments = [
        "motionbench",
        "run",
        "--method",
        "base",
        "--method",
        FYM,
        "--case",
        NAMES[0],
        "--seeds",
        "3",
    ]
    arguments += ["--split", "test", "-o", "o", "--results", "r", "--workers", "2"]
    arguments += ["--engine", "ray"]
    assert main(arguments) == 1
    assert given == [
        Options(
            Path("o"), Path("r"), METHODS, split="test", names=NAMES[:1], seeds=3, workers=2, engine="ray"
        )
    ]
