"""The series and labels that a query of Prometheus names, compared with those that exist."""

from __future__ import annotations

import re

from django_sockets.observability.definitions import METRICS

__all__ = ["problems_of", "series"]

FROM_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to each series."""


def series() -> dict[str, set[str]]:
    """Name of a series -> its labels."""
    found = {}
    for definition in METRICS.values():
        labels = set(definition.labels)
        if definition.kind == "histogram":
            found[f"{definition.full_name}_bucket"] = {*labels, "le"}
            found[f"{definition.full_name}_count"] = labels
            found[f"{definition.full_name}_sum"] = labels
        else:
            found[definition.full_name] = labels
    return found


def problems_of(query: str) -> list[str]:
    """What is wrong with a query: unknown series and labels."""
    known = series()
    names = re.findall(r"\bdjango_sockets_\w+", query)
    problems = [f"no series {name}" for name in names if name not in known]
    labels = {label for name in names for label in known.get(name, ())} | FROM_PROMETHEUS
    used = re.findall(r"by \(([^)]*)\)", query) + re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    named = re.findall(r"\w+", " ".join(used))
    problems += [f"no label {label}" for label in named if label not in labels]
    return problems if names else [*problems, "it names no series"]
