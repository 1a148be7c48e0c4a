"""What `Model.predict` gives: rankings, and tables of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from zar_ray.adaptation.rankings import RankedLabel, Ranking
from zar_ray.reporting.ranking_files import rankings_csv

if TYPE_CHECKING:
    import pandas as pd

_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("method", pa.string()),
        ("label", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("std", pa.float64()),
        ("rank_before", pa.int32()),
        ("score_before", pa.float64()),
        ("std_before", pa.float64()),
        ("warning", pa.string()),
        ("error", pa.string()),
    ]
)


class Predictions(Sequence[Ranking]):
    """One ranking a video and method, in the order given.

    Attributes:
        random_weights: Whether the model is untrained, so that the scores say nothing.
    """

    def __init__(self, rankings: Iterable[Ranking], *, random_weights: bool = False) -> None:
        self._rankings = tuple(rankings)
        self.random_weights = random_weights

    @overload
    def __getitem__(self, index: int) -> Ranking: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: int | slice) -> Ranking | Predictions:
        found = self._rankings[index]
        return found if isinstance(found, Ranking) else Predictions(found, random_weights=self.random_weights)

    def __len__(self) -> int:
        return len(self._rankings)

    def __repr__(self) -> str:
        said = (f"{one.video}, {one.method}: {one.error or one.best.label}" for one in self)
        return f"Predictions({'; '.join(said)})"

    @property
    def failed(self) -> tuple[Ranking, ...]:
        """Those of videos that could not be used; each says why in `error`."""
        return tuple(one for one in self if one.error is not None)

    def write_csv(self, place: str | os.PathLike[str], top_k: int = 5) -> None:
        """Writes the table of `zar predict --csv`: a row a video and method, with a column a rank.

        Args:
            place: The file's path or URI.
            top_k: How many ranks.

        Raises:
            ConfigError: A folder has that name.
            RunError: The file cannot be written.
        """
        with rankings_csv(os.fspath(place), top_k) as write:
            for ranking in self:
                write(ranking)

    def to_arrow(self) -> pa.Table:
        """A row a (video, method, label), by falling score after adaptation; one without a label where a video failed.

        ``score`` is the softmax probability after adaptation, of several seeds the mean, and ``std`` their standard
        deviation; ``score_before`` is the one before. Ranks count from 1.
        """
        return pa.Table.from_pylist([row for ranking in self for row in _rows(ranking)], _SCHEMA)

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        return self.to_arrow().to_pandas()


def _rows(ranking: Ranking) -> Iterator[dict[str, Any]]:
    said = {"video": ranking.video, "method": ranking.method, "warning": ranking.warning, "error": ranking.error}
    if ranking.error is not None:
        yield said
    before, after = _by_label(ranking.before), _by_label(ranking.after)
    for label in dict.fromkeys((*after, *before)):
        (rank, now), (rank_before, then) = after.get(label, (None, None)), before.get(label, (None, None))
        yield {
            **said,
            "label": label,
            "rank": rank,
            "score": now and now.score,
            "std": now and now.std,
            "rank_before": rank_before,
            "score_before": then and then.score,
            "std_before": then and then.std,
        }


def _by_label(ranked: Sequence[RankedLabel]) -> dict[str, tuple[int, RankedLabel]]:
    return {one.label: (rank, one) for rank, one in enumerate(ranked, start=1)}
