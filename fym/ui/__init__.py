"""The local web page: `fym ui`. Everything it shows is read from run directories, everything it does is a
`fym` command run as a child process, so a closed page or a restarted server loses nothing."""

from __future__ import annotations

from pathlib import Path

from fym.errors import UserError


def serve(root: Path, *, port: int, model: str) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; jobs that run then go on.

    root: the folder that holds the run directories. Raises UserError where gradio is missing or the port is
    taken.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("The web page cannot be shown", str(error), "pip install 'fym[ui]'") from None
    from fym.ui.app import launch

    launch(root, port=port, model=model)
