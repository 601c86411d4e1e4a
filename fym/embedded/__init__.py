"""The embedded model: a small Wan pipeline, its world of rendered scenes, and the code that made it.

Importing this package makes the autoencoder's class known to diffusers, so that
`WanPipeline.from_pretrained(fym.embedded.model_path())` works.
"""

from __future__ import annotations

from pathlib import Path

from fym.embedded import autoencoder as autoencoder  # diffusers finds the class through sys.modules


def model_path() -> Path:
    """Folder of the embedded diffusers pipeline."""
    return Path(__file__).parent / "model"
