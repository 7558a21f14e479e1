"""Published figures of the papers, which stand in the tables beside ours, marked as theirs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from common.errors import UsageError

MARKS = "†‡§¶"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One published result; nothing in it was measured here.

    Attributes:
        value: the metric in points, or None where only a difference is known.
        difference: in points, to `against` ('fp32', or another method).
        speed: what is claimed of speed, in words.
        source: key of the source.
        mark: the sign that refers to the source in a table.
    """

    task: str
    network: str
    dataset: str
    method: str
    metric: str
    source: str
    mark: str
    value: float | None = None
    difference: float | None = None
    against: str = "fp32"
    speed: str = ""

    @property
    def has_accuracy(self) -> bool:
        """Whether it says more than a speed."""
        return self.value is not None or self.difference is not None


@dataclasses.dataclass(frozen=True)
class Published:
    """Figures, and the citation of each source by its mark."""

    figures: tuple[Figure, ...] = ()
    citations: tuple[tuple[str, str], ...] = ()


def read_published(path: Path | None) -> Published:
    """The file's figures; none for None.

    Raises:
        UsageError: no such file, not JSON, an unknown field, or a source without citation.
    """
    if path is None:
        return Published()
    if not path.is_file():
        raise UsageError(f"published figures {path} do not exist")
    try:
        document = json.loads(path.read_text())
        marks = dict(zip(document["sources"], MARKS, strict=False))
        figures = tuple(
            Figure(mark=marks[entry["source"]], **entry) for entry in document["figures"]
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a list of published figures: {error!r}") from error
    citations = tuple((marks[name], text) for name, text in document["sources"].items())
    return Published(figures, citations)
