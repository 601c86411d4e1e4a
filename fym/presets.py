"""Values of the two stages that go together; `preset` names one of these sets."""

from __future__ import annotations

from typing import Any


def _stages(rank: int, steps: tuple[int, int], rate: float, decay: tuple[float, float]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for stage, count, weight_decay in zip(("spatial", "temporal"), steps, decay, strict=True):
        both = {"rank": rank, "alpha": float(rank), "learning_rate": rate}
        values |= {f"{stage}.{k}": v for k, v in both.items()}
        values |= {f"{stage}.steps": count, f"{stage}.weight_decay": weight_decay}
    return values


PRESETS: dict[str, dict[str, Any]] = {
    "paper": _stages(128, (3000, 2000), 1e-4, (0.01, 0.01)),
    "fast": _stages(16, (500, 500), 1e-4, (0.1, 0.5)),
    # Found by measurement on the embedded model, see docs/method-choices.md.
    "tiny": _stages(32, (150, 700), 7e-3, (0.0, 0.0))
    | {
        "spatial.learning_rate": 3e-3,
        "tune.looks": 12,
        "tune.scenes": [f"a rough {colour} background" for colour in ("green", "yellow", "brown", "orange")],
        "heads.rule": "cosine",
        "temporal.batch_size": 4,
        "temporal.sparse_frames": 13,
        "temporal.picking": "groups",
        "temporal.latents": "select",
        "temporal.whole_share": 0.7,
        "temporal.lowest_noise": 0.7,
        "temporal.camera_lowest_noise": 0.2,
        "temporal.camera_guidance": 2.5,
        "temporal.person_lowest_noise": 0.2,
        "temporal.person_guidance": 2.0,
        "tune.optimizer": "muon",
        "tune.weighting": "none",
        "tune.decay": 0.4,
    },
}


def resolve_preset(preset: str, model: str) -> str:
    """The preset that "auto" stands for."""
    if preset != "auto":
        return preset
    return "tiny" if model == "embedded" else "fast"
