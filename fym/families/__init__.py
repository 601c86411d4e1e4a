"""Model families: one file each behind the interface of `base.Family`."""

from fym.families.base import AttentionControl, Family
from fym.families.loading import load_family

__all__ = ["AttentionControl", "Family", "load_family"]
