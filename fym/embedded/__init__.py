"""The embedded model: a small Wan pipeline, its world of rendered scenes, and the code that made it.

Importing this package makes the autoencoder's class known to diffusers, so that
`WanPipeline.from_pretrained(fym.embedded.model_path())` works.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fym.embedded import autoencoder as autoencoder  # diffusers finds the class through sys.modules


def model_path() -> Path:
    """Folder of the embedded diffusers pipeline."""
    return Path(__file__).parent / "model"


def _not_about_the_autoencoder(record: logging.LogRecord) -> bool:
    """diffusers warns that the autoencoder's class is another one than Wan's; here that is meant."""
    return "PatchAutoencoder" not in record.getMessage()


logging.getLogger("diffusers.pipelines.pipeline_utils").addFilter(_not_about_the_autoencoder)
