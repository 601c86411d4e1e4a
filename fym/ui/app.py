"""The page: three columns, one for each step. It holds no state but the name of the run it shows."""

from __future__ import annotations

import functools
import os
import re
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before gradio is imported: nothing is sent, nothing is asked for outside this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fym.config import OPTIONS
from fym.errors import UserError
from fym.ui import jobs, views, watch
from fym.ui.runs import LONGEST, Crop, Runs

HOST = "127.0.0.1"
LARGEST_UPLOAD = "200mb"
EVERY = 2.0  # seconds between looks at the run directory
FONTS = ["system-ui", "sans-serif"]  # the machine's own


def launch(root: Path, *, port: int, model: str, wait: bool = True) -> gr.Blocks:
    """Serves the page, on the loopback address alone; wait: until Ctrl-C. UserError: the port is taken."""
    runs = Runs(root, model)
    if threading.current_thread() is threading.main_thread():
        # A shell that starts this in the background lets it ignore Ctrl-C; its children would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    uploads = tempfile.TemporaryDirectory(prefix="fym-ui-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    page = build(runs)
    weakref.finalize(page, uploads.cleanup)  # they go with the page
    try:
        page.queue(default_concurrency_limit=4).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(runs.root)],
            max_file_size=LARGEST_UPLOAD,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            pwa=False,
            footer_links=[],
            css=views.STYLE,
            theme=gr.themes.Default(
                primary_hue="orange", font=FONTS, font_mono=["ui-monospace", "monospace"]
            ),
            # A foreign page whose name is made to point at this machine sends its own name as the host.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except OSError as error:
        raise UserError(
            "The web page cannot be served", str(error).split("\n")[0], "Choose another --port"
        ) from None
    except ValueError:  # gradio asks its own server for the page and gives it three seconds
        page.close()
        raise UserError(
            "The web page cannot be served",
            f"it does not answer on {HOST}, because a proxy is in the way or the machine is very busy",
            f"Set NO_PROXY={HOST},localhost, or try again",
        ) from None
    if wait:
        print(f"the page: http://{HOST}:{port}   (Ctrl-C ends it; a job at work goes on)", flush=True)
        page.block_thread()
    return page


def told(action: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake of the user's is shown in a box that stays until it is closed."""

    @functools.wraps(action)
    def run(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except UserError as error:
            raise gr.Error(str(error), title="", duration=None, print_exception=False) from None

    return run


def seeds_of(text: str) -> list[int]:
    """ "0, 1, 2" as numbers."""
    try:
        return [int(part) for part in re.split(r"[\s,]+", text.strip()) if part]
    except ValueError:
        raise UserError(f'Seeds "{text}" cannot be read', "they are whole numbers", "Write 0, 1, 2") from None


def build(runs: Runs) -> gr.Blocks:
    """The layout and what its buttons do."""
    with gr.Blocks(title="fym", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        with gr.Row(equal_height=True):
            gr.Markdown("# fym\nLearn the motion of one clip and give it to new content.")
            name = gr.Dropdown(
                choices=[],
                label="Run",
                info="a run directory; type a new name for a new clip",
                allow_custom_value=True,
            )
        with gr.Row():
            with gr.Column(elem_classes="step", min_width=340):
                gr.Markdown("## 1  Reference clip")
                upload = gr.Video(label="Video file or webcam", sources=["upload", "webcam"], height=270)
                with gr.Row():
                    start = gr.Number(0, label="First frame", precision=0, minimum=0, min_width=100)
                    frames = gr.Number(
                        0, label="Frames (0 = all)", precision=0, minimum=0, maximum=LONGEST, min_width=100
                    )
                with gr.Accordion("Crop", open=False):
                    edges = [
                        gr.Slider(0, 90, 0, step=1, label=f"{edge}, %")
                        for edge in ("Left", "Top", "Right", "Bottom")
                    ]
                take = gr.Button("Take this clip", variant="primary")
                clip_view = gr.HTML()
            with gr.Column(elem_classes="step", min_width=340):
                gr.Markdown("## 2  Tune")
                prompt = gr.Textbox(label="What the clip shows", lines=2, placeholder="a red ball bounces")
                preset = gr.Dropdown(list(OPTIONS["preset"].choices), value="auto", label="Preset")
                with gr.Accordion("More settings", open=False):
                    lines = gr.Textbox(
                        label="Fields of the configuration, one a line",
                        info="as `fym init` lists them",
                        lines=4,
                        placeholder="temporal.steps = 300\ntune.sample_every = 100",
                    )
                    fresh = gr.Checkbox(label="Start over: drop what this run has learned")
                classify = gr.Button("Classify heads", size="sm")
                with gr.Row():
                    train = gr.Button("Start", variant="primary", min_width=80)
                    resume = gr.Button("Resume", interactive=False, min_width=80)
                    stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80)
                status = gr.HTML()
                loss_view, heads_view, samples_view = gr.HTML(), gr.HTML(), gr.HTML()
            with gr.Column(elem_classes="step", min_width=340):
                gr.Markdown("## 3  Generate")
                prompts = gr.Textbox(
                    label="Prompts, one a line", lines=3, placeholder="a yellow star on a blue background"
                )
                seeds = gr.Textbox("0", label="Seeds")
                scale = gr.Slider(0, 2, 1, step=0.05, label="Strength of the motion")
                spatial = gr.Slider(0, 2, 0, step=0.05, label="Strength of the reference's look")
                generate = gr.Button("Generate", variant="primary", interactive=False)
                compare_view = gr.HTML()
                with gr.Row():
                    motion = gr.DownloadButton("Motion file", interactive=False, min_width=120)
                    report = gr.DownloadButton("Report", interactive=False, min_width=120)
        look = _watch(
            name,
            [status, classify, train, resume, stop, generate, motion, report],
            lambda run, seen: watch.changes(runs, watch.controls, run, seen),
        )
        # Apart from the others: tracks take seconds, and the buttons must not wait for them.
        look_at_clips = _watch(
            name,
            [clip_view, loss_view, heads_view, samples_view, compare_view],
            lambda run, seen: watch.changes(runs, watch.pictures, run, seen),
        )

        def first_look() -> Any:
            found = runs.names()
            return gr.Dropdown(choices=found, value=found[0] if found else None)

        def list_runs() -> Any:
            return gr.Dropdown(choices=runs.names())

        timer = gr.Timer(EVERY)
        page.load(first_look, outputs=name)
        name.focus(list_runs, outputs=name, show_progress="hidden")
        for watched in (look, look_at_clips):
            page.load(**watched)
            name.change(**watched)
            timer.tick(**watched)

        def taken(run: str | None, path: str | None, first: float, count: float, *crop: float) -> Any:
            if not path:
                raise UserError(
                    "No clip is given", "the motion is learned from it", "Upload one or record it"
                )
            run = (run or "").strip() or _free_name(runs, Path(path).stem)
            runs.take_clip(run, Path(path), start=int(first or 0), frames=int(count or 0), crop=Crop(*crop))
            return gr.Dropdown(choices=runs.names(), value=run)

        settings = [name, prompt, preset, lines]

        def act(button: Any, action: Callable[..., Any], inputs: list[Any], outputs: Any = None) -> None:
            # One at a time, so that two pages cannot both find the root idle and start a job.
            event = button.click(
                told(action),
                inputs,
                outputs,
                concurrency_id="act",
                concurrency_limit=1,
                show_progress="minimal",
            )
            event.then(**look)

        act(take, taken, [name, upload, start, frames, *edges], name)
        act(classify, lambda *given: _nothing(runs.classify(*given)), settings)
        act(
            train,
            lambda run, text, chosen, more, over: _nothing(runs.train(run, text, chosen, more, fresh=over)),
            [*settings, fresh],
        )
        act(resume, lambda run: _nothing(runs.resume(run)), [name])
        act(stop, runs.stop, [name])
        act(
            generate,
            lambda run, text, numbers, *scales: _nothing(
                runs.generate(run, text, seeds_of(numbers), *scales)
            ),
            [name, prompts, seeds, scale, spatial],
        )
    return page


def _nothing(_: jobs.Job) -> None:
    return None


def _free_name(runs: Runs, stem: str) -> str:
    """A name for a new run, after the file."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:40] or "clip"
    taken = set(runs.names())
    return next(name for name in (base, *(f"{base}-{n}" for n in range(2, 10**6))) if name not in taken)


def _watch(
    name: gr.Dropdown,
    shown: list[Any],
    changes_of: Callable[[str | None, dict[str, Any]], list[Any]],
) -> dict[str, Any]:
    """The arguments of an event that brings components up to date; `changes_of` gives a value for each."""
    seen = gr.State({})
    return {
        "fn": changes_of,
        "inputs": [name, seen],
        "outputs": [*shown, seen],
        "show_progress": "hidden",
    }
