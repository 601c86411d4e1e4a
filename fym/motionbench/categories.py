"""How the cases of the data set are divided."""

from __future__ import annotations

CATEGORIES = ("camera", "object", "objects", "human")
UNSORTED = "unsorted"  # the category of a real clip that nobody has sorted
PARTS = ("synthetic", "real")
SPLITS = ("development", "test")
