"""The demo: learn the motion of a real and of a rendered clip, give it to new things, show it on one page."""

from fym.demo.job import run_demo

__all__ = ["run_demo"]
