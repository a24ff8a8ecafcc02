"""The text of Prometheus as numbers, read by the parser of `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from django_sockets.observability.definitions import NAMESPACE

__all__ = ["Metrics", "scraped"]


class Metrics:
    """The series of one or several scrapes.

    Call it with the name of a series without "django_sockets_", and with labels: it returns the sum
    of all series that have them.
    """

    def __init__(self, series: Iterable[tuple[str, dict[str, str], float]]) -> None:
        self.series = list(series)

    def __call__(self, name: str, **labels: str) -> float:
        full = f"{NAMESPACE}_{name}"
        return sum(
            value
            for found, having, value in self.series
            if found == full and labels.items() <= having.items()
        )

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.series}

    def since(self, before: Metrics) -> Metrics:
        """What was added to each series."""
        taken = [(name, labels, -value) for name, labels, value in before.series]
        return Metrics([*self.series, *taken])

    def plus(self, other: Metrics) -> Metrics:
        """The sums with another process."""
        return Metrics([*self.series, *other.series])


def scraped(text: str) -> Metrics:
    """The series in a text of Prometheus."""
    return Metrics(
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )
