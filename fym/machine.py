"""Facts about this machine and the packages on it, with no torch needed."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty where it does not tell."""
    return set(_cpuinfo("flags").split())


def installed(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def unmet(distribution: str) -> list[tuple[Requirement, str]]:
    """Requirements of an installed distribution that another installed version does not meet."""
    try:
        needs = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for text in needs:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        version = installed(need.name)
        wanted = need.marker is None or need.marker.evaluate({"extra": ""})
        if wanted and version is not None and not need.specifier.contains(Version(version), prereleases=True):
            found.append((need, version))
    return found


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or its container's limit; 0 where neither is known."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(Path(limit)).strip()
        if text.isdigit():
            total = min(total, int(text))
    return total


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
