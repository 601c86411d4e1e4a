"""What the pages say is so: the reference is that of the program, quoted messages exist, named files are
there, examples run, and figures are those of the results."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import faults
from fym import cli_reference
from fym.motionbench.pair import Pair

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def literals() -> list[str]:
    """Every text in the package's code; what an f-string puts in is a gap, marked \\0."""
    found = []
    for path in (ROOT / "fym").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_command_line_page_is_the_programs_own():
    """If not: python -m fym.cli_reference."""
    assert cli_reference.PAGE == DOCS / "cli.md"
    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.page()


def test_messages_in_troubleshooting_are_what_the_code_says():
    """`...` stands for what is put in; the system's own words are those of errno."""
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    texts = [*literals(), "No space left on device"]
    assert len(rows) > 20
    for row in rows:
        parts = [part for part in row.split("...") if part.strip()]
        pattern = re.compile("\0?.*".join(re.escape(part) for part in parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), row


@pytest.mark.parametrize("page", ["extending.md", "faults.md", "running.md", "troubleshooting.md"])
def test_files_and_pages_that_are_named_exist(page):
    text = (DOCS / page).read_text("utf-8")
    paths = re.findall(r"`((?:fym|fym_kernels|csrc|tests|benchmarks)/[\w./]+)`", text)
    pages = re.findall(r"\]\(([\w-]+\.md)", text)
    assert paths or pages
    assert [p for p in paths if not (ROOT / p).exists()] == []
    assert [p for p in pages if not (DOCS / p).exists()] == []


def test_the_metric_in_extending_measures():
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    metric = names["METRIC"]
    ground = torch.randint(0, 255, (48, 96, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ground = torch.nn.functional.avg_pool2d(ground.permute(2, 0, 1).float(), 5, 1, 2).permute(1, 2, 0)
    pan = torch.stack([ground[:, 2 * f : 2 * f + 64] for f in range(9)]).to(torch.uint8)
    assert metric.measure(Pair(pan, pan)).value == pytest.approx(1.0)
    assert metric.sees(metric.measure(Pair(pan, pan[:1].expand(9, -1, -1, -1))).value)


def test_the_fault_tables_are_those_of_the_results():
    """No figures without results; with them, those figures."""
    text = (DOCS / "faults.md").read_text("utf-8")
    if not faults.FILE.exists():
        assert "| killed at" not in text and "| input |" not in text
        return
    record = json.loads(faults.FILE.read_text("utf-8"))
    assert faults.tables(record) in text
    assert len(record["kills"]) >= 50 and len(record["inputs"]) >= 200
    assert all(row["unequal"] == [] for row in record["kills"])
    assert all(row["end"] in ("read", "refused") and not row["partial"] for row in record["inputs"])
