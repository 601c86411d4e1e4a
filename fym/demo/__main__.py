"""`python -m fym.demo [-o DIR]`: runs the demo and says where its page is."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fym.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit code: 0, 2 for a mistake the user can repair, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m fym.demo", description="Learn two motions and show them on new things."
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo"), help="folder (runs/demo)")
    parser.add_argument("--model", default="embedded", help="the embedded model, or another one's folder")
    chosen = parser.parse_args(arguments)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    try:
        from fym.demo.job import run_demo

        run_demo(chosen.output, model=chosen.model)
    except UserError as error:
        if os.environ.get("FYM_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"fym: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fym: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
