"""The web page in headless Chromium: a clip in, a tuning stopped and resumed, new clips out."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import CHROMIUM

pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]

DEMO = Path(__file__).parents[2] / "fym" / "demo" / "clips" / "apple_bounce.mp4"
LONG = """spatial.steps = 4
temporal.steps = 2000
temporal.whole_share = 0
tune.log_every = 1
generate.steps = 4"""
SHORT = LONG.replace("2000", "6")
PATIENCE = 300_000  # ms for what trains or generates


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(root: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fym", "ui", "--port", str(port), "--runs", str(root)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        assert server.poll() is None, "the server ended"
        time.sleep(0.2)
    raise AssertionError("the page never came")


def end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)
    server.wait(timeout=60)


@pytest.fixture
def browser(tmp_path):
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_from_a_clip_to_new_clips_and_downloads(browser, tmp_path):
    """Every step works, a restarted server finds the job at work, and nothing leaves the machine."""
    pictures = Path(os.environ.get("FYM_UI_PICTURES", tmp_path))
    root, port = tmp_path / "runs", free_port()
    address = f"http://127.0.0.1:{port}"
    server = serve(root, port)
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 1500})
        page.set_default_timeout(PATIENCE)
        playwright.expect.set_options(timeout=PATIENCE)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        def picture(name: str) -> None:
            page.wait_for_timeout(1500)
            page.screenshot(path=pictures / f"{name}.png")

        def button(name: str):
            return page.get_by_role("button", name=name, exact=True)

        page.goto(address)
        playwright.expect(button("Start")).to_be_visible()
        picture("1-empty")
        button("Take this clip").click()
        playwright.expect(page.get_by_text("No clip is given")).to_be_visible()
        picture("2-error")
        page.get_by_label("Close").first.click()
        page.locator("input[type=file]").first.set_input_files(DEMO)
        playwright.expect(page.locator(".step video").first).to_be_visible()
        button("Take this clip").click()
        playwright.expect(page.locator(".fym .clips video")).to_have_count(2)
        picture("3-clip")
        assert (root / "apple_bounce" / "clip.mp4").is_file()

        page.get_by_label("What the clip shows").fill("a red apple drops and bounces")
        page.get_by_text("More settings").click()
        page.get_by_label("Fields of the configuration").fill(LONG)
        button("Start").click()
        playwright.expect(page.get_by_text(re.compile(r"temporal \d+/2000"))).to_be_visible()
        picture("4-tuning")
        # The page goes and the server with it: the tuning goes on and is found again.
        end(server)
        server = serve(root, port)
        page.goto(address)
        playwright.expect(page.locator(".status.running")).to_be_visible()
        playwright.expect(button("Stop")).to_be_enabled()
        button("Stop").click()
        playwright.expect(page.get_by_text("Resume goes on from the last checkpoint")).to_be_visible()
        assert not (root / "apple_bounce" / "motion.safetensors").exists()
        picture("5-stopped")
        button("Resume").click()
        playwright.expect(page.get_by_text(re.compile(r"temporal \d+/2000"))).to_be_visible()
        assert "going on after step" in (root / "apple_bounce" / "job.log").read_text("utf-8")
        button("Stop").click()
        playwright.expect(page.get_by_text("Resume goes on from the last checkpoint")).to_be_visible()
        page.get_by_label("What the clip shows").fill("a red apple drops and bounces")
        page.get_by_text("More settings").click()
        page.get_by_label("Fields of the configuration").fill(SHORT)
        button("Start").click()
        playwright.expect(page.get_by_text("has begun already")).to_be_visible()
        page.get_by_label("Close").first.click()
        page.get_by_label("Start over").check()
        button("Start").click()
        playwright.expect(page.get_by_text("train is over")).to_be_visible()
        picture("6-tuned")

        page.get_by_label("Prompts, one a line").fill(
            "a yellow star on a blue background\na purple square on a white background"
        )
        button("Generate").click()
        playwright.expect(page.get_by_text("generate is over")).to_be_visible()
        new = page.locator(".step").nth(2).locator("video")
        playwright.expect(new).to_have_count(3)
        assert (
            new.nth(1).evaluate(
                "video => new Promise(done => video.readyState ? done(video.videoWidth) : "
                "video.onloadedmetadata = () => done(video.videoWidth))"
            )
            > 40
        )
        picture("7-generated")
        page.screenshot(path=pictures / "8-whole.png", full_page=True)
        for name, start in (("Motion file", b""), ("Report", b"<!DOCTYPE html>")):
            with page.expect_download() as download:
                button(name).click()
            assert Path(download.value.path()).read_bytes().startswith(start)
        assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    finally:
        end(server)
