"""What a report's page must be, for tests: well-formed, self-contained, and fit for a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "input", "img", "link", "hr"}
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Checks that tags nest, and collects every address and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "poster", "data", "action", "xlink:href"}:
                self.addresses.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def assert_self_contained(page: Page) -> None:
    inline = ("data:video/mp4;base64,", "data:image/png;base64,", "#")
    assert all(address.startswith(inline) for address in page.addresses)
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.tags)
    styles = re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page.source)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", styles)
    # The only http addresses are names of XML vocabularies, which nothing loads.
    assert set(re.findall(r"https?://[^\s\"'<]+", styles)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def browse(page: Path, profile: Path, *flags: str) -> str:
    """What headless Chromium prints when it opens the page with some flags, without a network."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    place = f"--user-data-dir={profile / 'profile'}"
    command = [CHROMIUM or "chromium", *quiet, place, *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
