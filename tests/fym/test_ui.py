"""What the web page does, without a browser: its jobs, its checks, and what it refuses to read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fym.cli import main
from fym.errors import UserError
from fym.report.rundir import read_run
from fym.ui import jobs, views
from fym.ui.runs import OWN, Crop, Runs
from fym.video import read_clip, write_clip


def until(condition, seconds=60.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.05)


@pytest.fixture
def clip(tmp_path, moving_square):
    path = tmp_path / "some clip.mp4"
    write_clip(path, moving_square, 8)
    return path


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs")


@pytest.fixture
def started(monkeypatch):
    """The commands that would be started: (kind, arguments)."""
    commands = []

    def note(folder, kind, arguments):
        commands.append((kind, list(arguments)))

    monkeypatch.setattr(jobs, "start", note)
    return commands


@pytest.fixture
def sleeper(runs, clip, monkeypatch):
    """A run in which a process waits for Ctrl-C instead of a command of ours."""
    runs.take_clip("busy", clip)
    folder = runs.folder("busy")
    real = subprocess.Popen

    def wait(command, **options):
        code = "import time, sys\nprint('temporal 1/2  loss 0.5', flush=True)\n"
        code += "try:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('fym: stopped'); sys.exit(130)"
        return real([sys.executable, "-u", "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", wait)
    job = jobs.start(folder, "train", [])
    monkeypatch.undo()
    yield folder
    if job.running:
        os.kill(job.pid, signal.SIGKILL)


def test_a_job_is_found_again_from_disk_and_stops_on_ctrl_c(runs, sleeper):
    """Another Runs on the same root sees the job at work, refuses a second one, and can stop it."""
    until(lambda: "temporal" in jobs.last_words(sleeper))
    again = Runs(runs.root)
    assert jobs.current(sleeper).running and again.names()[0] == "busy"
    assert "train at work" in views.status(sleeper)
    with pytest.raises(UserError, match="busy is busy"):
        again.train("busy", "a square", "tiny", "")
    with pytest.raises(UserError, match="train is at work"):
        jobs.start(sleeper, "generate", [])
    again.stop("busy")
    until(lambda: not jobs.current(sleeper).running)
    assert "train stopped." in views.status(sleeper)


def test_a_number_used_again_is_not_the_job(runs, clip):
    """A process of another start time has nothing to do with the job and is not stopped."""
    runs.take_clip("old", clip)
    folder = runs.folder("old")
    (folder / "job.json").write_text(json.dumps({"kind": "train", "pid": os.getpid(), "created": 1.0}))
    assert not jobs.current(folder).running
    jobs.stop(folder)  # would interrupt this very test


def test_a_command_that_fails_says_so_in_its_own_words(runs, clip):
    """The real command line, as a child: its one-sentence UserError becomes the status."""
    runs.take_clip("x", clip)
    folder = runs.folder("x")
    jobs.start(folder, "train", ["--config", str(folder / "none.toml")])
    until(lambda: not jobs.current(folder).running)
    status = views.status(folder)
    assert "none.toml cannot be read: there is no such file" in status and "error" in status


def test_a_clip_is_decoded_cut_and_cropped(runs, clip, moving_square):
    """Range and crop act on exact frames; the name of the file counts for nothing."""
    nameless = clip.rename(clip.with_suffix(".txt"))
    _, height, width, _ = moving_square.shape
    taken = read_clip(runs.take_clip("x", nameless, start=2, frames=5, crop=Crop(left=25, bottom=50))).frames
    assert taken.shape == (5, height // 2, width * 3 // 4, 3)
    wanted = moving_square[2:7, : height // 2, width - width * 3 // 4 :]
    assert (taken.float() - wanted.float()).abs().mean() < 12  # h264 of noise
    assert runs.names() == ["x"]
    with pytest.raises(UserError, match="The crop leaves nothing"):
        runs.take_clip("x", nameless, crop=Crop(left=60, right=60))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\necho", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 400])
def test_what_is_not_a_video_is_refused_by_decoding(runs, tmp_path, content):
    """A name ending in .mp4 does not make a video, and nothing of it is kept."""
    upload = tmp_path / "evil.mp4"
    upload.write_bytes(content)
    with pytest.raises(UserError) as caught:
        runs.take_clip("x", upload)
    assert str(caught.value).startswith("evil.mp4") and runs.names() == []


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", ".hidden", "", "a\0b", "x" * 65, "~"])
def test_a_name_cannot_lead_out_of_the_root(runs, clip, name):
    with pytest.raises(UserError):
        runs.take_clip(name, clip)
    with pytest.raises(UserError):
        runs.existing(name)


def test_links_and_listed_names_cannot_lead_out_of_the_run(runs, clip, tmp_path):
    """A linked run directory is none; linked files and names listed with ../ are not shown."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.toml").write_text("")
    (runs.root / "linked").symlink_to(outside)
    assert runs.names() == []
    with pytest.raises(UserError):
        runs.existing("linked")
    runs.take_clip("x", clip)
    folder = runs.existing("x")
    (folder / "samples").mkdir()
    (folder / "samples" / "link.mp4").symlink_to(clip)
    (folder / "motion.safetensors").symlink_to("/etc/passwd")
    rows = [
        {"file": name, "prompt": "p", "seed": 0, "kind": "motion", "step": 1}
        for name in ("link.mp4", "../../../some clip.mp4", str(clip))
    ]
    (folder / "samples" / "samples.json").write_text(json.dumps(rows))
    assert "Samples: not there yet" in views.samples(runs, read_run(folder))
    with pytest.raises(UserError, match="no motion file"):
        runs.generate("x", "a star", [0], 1, 0)


def test_the_commands_are_those_of_the_command_line(runs, clip, started):
    """Start, start over, resume and classify run `fym` on a configuration with the page's fields in it."""
    runs.take_clip("x", clip)
    folder = runs.folder("x")
    lines = "temporal.steps = 7\ntemporal.whole_share = 0\ntemporal.sparse_frames = 5\n"
    runs.classify("x", "a square", "tiny", lines)
    runs.train("x", "a square", "tiny", lines)
    assert started == [(kind, ["--config", str(folder / "config.toml")]) for kind in ("classify", "train")]
    run = read_run(folder)
    assert run.setting("temporal.steps") == 7 and run.setting("clip.prompt") == ["a square"]
    assert run.setting("output") == str(folder) and run.setting("clip.path") == [str(folder / "clip.mp4")]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest").write_text("")
    with pytest.raises(UserError, match="has begun already"):
        runs.train("x", "a square", "tiny", lines)
    with pytest.raises(UserError, match="learned from another clip"):
        runs.take_clip("x", clip)
    runs.train("x", "a square", "tiny", lines, fresh=True)
    assert started[-1][1][-1] == "--fresh"
    runs.resume("x")
    assert started[-1] == ("train", ["--config", str(folder / "config.toml"), "--output", str(folder)])


def test_new_clips_are_listed_with_their_prompts(runs, clip, started):
    """One file for each prompt and seed; those that are there are found again from generate.toml."""
    runs.take_clip("x", clip)
    folder = runs.folder("x")
    runs.train("x", "a square", "tiny", "temporal.sparse_frames = 5")
    (folder / "motion.safetensors").write_bytes(b"stands for one")
    runs.generate("x", "a star\n\na circle\n", [0, 3], 1.0, 0.25)
    assert started[-1] == ("generate", ["--config", str(folder / "generate.toml")])
    assert runs.generated(folder) == []
    (folder / "generated").mkdir()
    write_clip(folder / "generated" / "1-a-circle-s3.mp4", read_clip(clip).frames, 8)
    [made] = runs.generated(folder)
    assert (made.prompt, made.seed) == ("a circle", 3)
    shown = views.comparison(runs, folder)
    assert shown.count("<video") == 1 and "a circle, seed 3" in shown


@pytest.mark.parametrize("field", OWN)
def test_settings_cannot_name_files(runs, clip, started, field):
    """A text field of the page must not make the command read or write elsewhere."""
    runs.take_clip("x", clip)
    with pytest.raises(UserError, match="cannot be set here"):
        runs.train("x", "a square", "tiny", f'{field}="/tmp/elsewhere"')
    with pytest.raises(UserError, match=r"did you mean temporal\.steps"):
        runs.train("x", "a square", "tiny", "temporal.step=3")
    assert started == []


def test_without_gradio_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui", "--runs", str(tmp_path)]) == 2
    assert "pip install 'fym[ui]'" in capsys.readouterr().err


class TestServed:
    """The server itself, asked without a browser."""

    @pytest.fixture(scope="class")
    def client(self, tmp_path_factory):
        pytest.importorskip("gradio", reason="gradio is not installed")
        from fastapi.testclient import TestClient

        from fym.ui.app import launch

        root = tmp_path_factory.mktemp("served") / "runs"
        page = launch(root, port=free_port(), model="embedded", wait=False)
        (root / "x").mkdir()
        (root / "x" / "report.html").write_text("a report")
        secret = root.parent / "secret.txt"
        secret.write_text("secret")
        (root / "x" / "link.txt").symlink_to(secret)
        yield TestClient(page.app, base_url="http://127.0.0.1"), root, page
        page.close()

    def test_nothing_outside_the_root_is_served(self, client):
        """Files of the root are; /etc, a path through .., a link that leads out and this project are not."""
        web, root, _ = client
        assert web.get(f"/gradio_api/file={root}/x/report.html").text == "a report"
        for path in (
            "/etc/passwd",
            f"{root}/../secret.txt",
            f"{root}/x/../../secret.txt",
            f"{root}/x/%2e%2e/%2e%2e/secret.txt",
            f"{root}/x/link.txt",
            "pyproject.toml",
            str(Path.cwd() / "pyproject.toml"),
            "file:///etc/passwd",
        ):
            answer = web.get(f"/gradio_api/file={path}")
            assert answer.status_code in (403, 404) and answer.text != "secret", path

    def test_it_listens_on_loopback_and_answers_to_its_own_name_only(self, client):
        """No share link, no telemetry; a foreign host name or origin is refused."""
        web, _, page = client
        assert page.local_url.startswith("http://127.0.0.1:") and not page.share_url
        assert page.server_name == "127.0.0.1" and not page.analytics_enabled
        assert web.get("/").status_code == 200
        assert web.get("/", headers={"host": "evil.example"}).status_code == 400
        answer = web.get("/config", headers={"origin": "http://evil.example"})
        assert answer.headers.get("access-control-allow-origin") is None

    def test_the_size_of_an_upload_is_limited(self, client):
        _, _, page = client
        assert page.max_file_size == 200 * 1024 * 1024

    def test_the_page_asks_for_nothing_elsewhere(self, client):
        """No font and no script comes from another machine (what the browser asks for: test_ui_browser)."""
        web, _, _ = client
        source = web.get("/").text
        assert "fonts.googleapis" not in source and "cdnjs" not in source

    def test_views_are_made_again_only_when_files_change(self, client, moving_square):
        """The second look at an unchanged run skips everything, a new name or file does not."""
        import gradio as gr

        from fym.ui import watch

        _, root, _ = client
        runs = Runs(root)
        write_clip(root / "y" / "clip.mp4", moving_square, 8)
        for parts in (watch.controls, watch.pictures):
            *first, seen = watch.changes(runs, parts, "y", {})
            *second, again = watch.changes(runs, parts, "y", seen)
            skip = gr.skip()
            assert skip not in first and all(value == skip for value in second) and again == seen
            *none, _ = watch.changes(runs, parts, "not there", seen)
            assert skip not in none and len(none) == len(first)

    def test_seeds_are_whole_numbers(self, client):
        from fym.ui.app import seeds_of

        assert seeds_of("0, 2 3") == [0, 2, 3]
        with pytest.raises(UserError, match="whole numbers"):
            seeds_of("one")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
