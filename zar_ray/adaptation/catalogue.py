"""The methods as a table: what each says of itself, in words, with what follows from its declarations."""

from __future__ import annotations

from dataclasses import dataclass

from zar_ray.adaptation.base import Method
from zar_ray.adaptation.methods import offered_methods
from zar_ray.video.options import ViewConfig

_NOTHING = "–"


@dataclass(frozen=True)
class KnownMethod:
    """A method under its default options.

    Attributes:
        method: For ``--method``.
        about: What it is, in a line.
        needs: What it looks at.
        updates: What it changes.
        stream: Whether decisions depend on the videos before: "yes", "no", or the option that makes them.
        cost: Images that are encoded for a video, and what comes on top.
        source: Where it was published; of a package's method the package, too.
    """

    method: str
    about: str
    needs: str
    updates: str
    stream: str
    cost: str
    source: str

    @property
    def cells(self) -> dict[str, str]:
        """Its cells by their column."""
        return dict(vars(self))

    @property
    def words(self) -> str:
        """What it can be found by, folded; a stream by that word."""
        stream = "" if self.stream == "no" else "stream"
        return " ".join([*vars(self).values(), stream]).casefold()


def known_methods() -> tuple[KnownMethod, ...]:
    """All methods, in their order."""
    return tuple(_known(package, method) for package, method in offered_methods().values())


def _known(package: str, method: Method) -> KnownMethod:
    options = None if method.options is None else method.options()
    whole = method.works_from_pixels(options)
    needs = [
        "views" if method.needs_views else "the evaluation view",
        *(["pixels"] if whole else []),
        *(["weights in full precision"] if method.updates == "weights" else []),
        *(["a context to tune"] if method.updates == "context" else []),
        *([method.also_needs] if method.also_needs else []),
    ]
    streams = method.is_stream(options)
    stream = "yes" if streams else "no" if method.open_stream is None else f"with --{method.name}.stream"
    own = package == "zar-ray"
    source = " ".join(part for part in (method.source, "" if own else f"({package})") if part)
    return KnownMethod(
        method=method.name,
        about=method.description,
        needs=", ".join(needs),
        updates=method.changes or method.updates,
        stream=stream,
        cost="; ".join(part for part in (_images(method), method.cost) if part),
        source=source or _NOTHING,
    )


def _images(method: Method) -> str:
    """Images of the views that it looks at by default, as many as they have at most: views share some."""
    views = ViewConfig()
    count = views.eval_frames
    if not method.needs_views:
        return f"{count} images"
    return f"up to {count + views.frames * views.views_per_rate * views.crops * len(views.rates)} images"
