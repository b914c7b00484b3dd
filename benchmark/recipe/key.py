"""A key of the recipe: its default, what is said about it, and what kind of key it is."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

# Keys that name a machine or how often something is logged or saved: a run may resume, and be compared, across their
# values.
MACHINE = {"machine": True}
# Keys that name the encoder under comparison: results that differ in them alone have one protocol.
ENCODER = {"encoder": True}


def key(default: Any, about: str, kind: Mapping[str, bool] | None = None) -> Any:
    """A key of the recipe: its default, what --help says about it, and MACHINE, ENCODER or nothing."""
    metadata = {"about": about, **(kind or {})}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
