"""Reading what `/metrics` shows."""

from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """
    The families of one answer.

    Args:
        text: In the text format of Prometheus.
    """

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.kinds = {family.name: family.type for family in families}
        self.helps = {family.name: family.documentation for family in families}
        self.samples = [sample for family in families for sample in family.samples]
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value for sample in self.samples
        }
        assert len(self._values) == len(self.samples), "A sample stands there twice."

    def value(self, name: str, /, **labels: str) -> float | None:
        """Give the value of the sample that has exactly these labels."""
        return self._values.get((name, frozenset(labels.items())))

    def total(self, name: str, /, **labels: str) -> float:
        """Add up the samples that have at least these labels."""
        wanted = labels.items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())

    def labels(self, name: str, label: str) -> set[str]:
        """Give every value of a label of one sample."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}


def scrape(client: Any, path: str = "/metrics", **options: Any) -> Scrape:
    """Ask a server for its metrics."""
    answer: httpx2.Response = client.get(path, **options)
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)
