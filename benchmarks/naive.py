"""The naive implementation everything is measured against: `fym.bench.naive`, part of the package so that
`fym bench` works from an installed one."""

from fym.bench.naive import *  # noqa: F403
