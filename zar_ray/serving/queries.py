"""What a request asks, checked against the service's limits and filled in with its defaults."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from zar_ray.data.classes import class_list, known_class_lists
from zar_ray.data.datasets import parse_class_names
from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.places import from_home
from zar_ray.serving.backend import Query
from zar_ray.serving.options import LimitConfig, ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import ClassifyParameters, ServedMethod, WindowParameters

_LABELS_IN_A_FIELD = ","
_MOST_VALUES = 1000


def label_sets_of(config: ServeConfig) -> dict[str, tuple[str, ...]]:
    """The service's label sets by name.

    Raises:
        ConfigError: A set cannot be read, or is larger than a request's labels may be.
    """
    sets = {}
    for name, source in config.label_sets.items():
        labels = class_list(source) if source in known_class_lists() else parse_class_names(source)
        if len(labels) > config.limits.labels:
            raise ConfigError(
                f"label_sets.{name}: has {len(labels)} labels and limits.labels is {config.limits.labels}; raise it"
            )
        sets[name] = labels
    return sets


def query_of(
    parameters: ClassifyParameters,
    config: ServeConfig,
    methods: Mapping[str, ServedMethod],
    label_sets: Mapping[str, tuple[str, ...]],
    request_id: str,
    received: float = 0.0,
) -> Query:
    """Checks a request's parameters.

    Args:
        parameters: What was sent.
        config: The service's options.
        methods: Its methods by name.
        label_sets: Its label sets.
        request_id: For logs and the answer.
        received: Seconds that the body took to arrive.

    Raises:
        RequestError: A parameter does not fit (``invalid-parameters``).
    """
    limits = config.limits
    seeds = _seeds(parameters, limits) or (config.seed if parameters.seed is None else parameters.seed,)
    method = parameters.method if parameters.method is not None else config.methods[0]
    if method not in methods:
        raise _unfit("method", f'"{_shown(method)}" is not served here{suggestion(method, methods)}')
    return Query(
        request_id=request_id,
        labels=_labels(parameters, label_sets, limits),
        method=method,
        options=_own_options(parameters, methods[method], limits),
        seed=seeds[0],
        seeds=seeds,
        template=_template(parameters.hypothesis_template, limits),
        top_k=parameters.top_k,
        **_rejection(parameters, config),
        explain=parameters.explain,
        received=received,
    )


def _rejection(parameters: ClassifyParameters, config: ServeConfig) -> dict[str, Any]:
    """What decisions are rejected by; the service's threshold is of its own score."""
    below, score = parameters.reject_below, parameters.reject_score
    if below is None and score not in (None, config.reject_score):
        raise _unfit("reject_score", f"the service's threshold is of {config.reject_score}; give reject_below with it")
    if below is None:
        below = config.reject_below
    return {"reject_below": below, "reject_score": score or config.reject_score}


def split_labels(fields: Sequence[str], limits: LimitConfig) -> tuple[str, ...]:
    """Candidate labels of a form: one a field, or several in a single field, one a line or between commas.

    Raises:
        RequestError: A single field is no such list, or too long for one (``invalid-parameters``).
    """
    if len(fields) != 1:
        return tuple(fields)
    (text,) = fields
    # A label may have a comma and spaces around it.
    longest = limits.labels * (limits.label_length + 4)
    if len(text) > longest:
        raise _unfit("candidate_labels", f"{len(text)} characters are more than the {longest} that a list may have")
    if "\n" in text.strip():
        return tuple(line for line in text.splitlines() if line.strip())
    if _LABELS_IN_A_FIELD not in text:
        return (text,)
    try:
        return tuple(next(csv.reader([text], skipinitialspace=True, strict=True), ()))
    except csv.Error as error:
        raise _unfit("candidate_labels", f"cannot be read as a list ({error})") from None


def beneath_roots(path: str, roots: Sequence[Path]) -> Path:
    """The file that a request names, links resolved.

    Args:
        path: Absolute, or relative to a root.
        roots: The folders that requests may read from.

    Raises:
        RequestError: It is no file beneath a root (``path-not-allowed``); whether something is there is not told.
    """
    refused = RequestError("path-not-allowed", "path: there is no such video beneath a root of this service")
    for root in roots:
        try:
            top = from_home(root).resolve(strict=True)
            file = (top / path).resolve(strict=True)
            if file.is_relative_to(top) and file.is_file():
                return file
        except (OSError, ValueError, RuntimeError):
            # not there, not readable, a name that no file can have, or a loop of links
            continue
    raise refused


def _own_options(parameters: ClassifyParameters, method: ServedMethod, limits: LimitConfig) -> dict[str, Any]:
    """What a request says of its method's own options."""
    given, steps = dict(parameters.options or {}), parameters.steps
    if any(True for _ in islice(_values_in(given), _MOST_VALUES, None)):
        raise _unfit("options", f"more than {_MOST_VALUES} values")
    if steps is not None and steps > limits.steps:
        raise _unfit("steps", f"{steps} are more than the {limits.steps} that a request may ask for")
    schema = method.options or {"properties": {}, "additionalProperties": False}
    known = schema["properties"]
    # Methods without steps pass over them, so that a client may ask several methods alike.
    if steps is not None and "steps" in known and given.setdefault("steps", steps) != steps:
        raise _unfit("steps", f"{steps} here, and others in options; give one of them")
    for name in given:
        if name not in known:
            raise _unfit(f"options.{_shown(name)}", f"{method.name} has no such option{suggestion(name, known)}")
    error = best_match(Draft202012Validator(schema).iter_errors(given))
    if error is not None:
        place = ".".join(["options", *map(str, error.absolute_path)])
        raise _unfit(place, _shown(error.message))
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise _unfit("options", "numbers must be finite") from None
    return given


def _values_in(value: Any) -> Iterator[Any]:
    """A JSON value's parts, itself among them, one after the other: who wants few need not see all."""
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values_in(part)


def _labels(
    parameters: ClassifyParameters, label_sets: Mapping[str, tuple[str, ...]], limits: LimitConfig
) -> tuple[str, ...]:
    given, name = parameters.candidate_labels, parameters.label_set
    if (given is None) == (name is None):
        raise _unfit("candidate_labels", "give either the candidate labels or the name of a label_set")
    if name is not None:
        if name not in label_sets:
            raise _unfit("label_set", f'there is no "{_shown(name)}"{suggestion(name, label_sets)}')
        return label_sets[name]
    assert given is not None
    if not given:
        raise _unfit("candidate_labels", "there are none; give at least one")
    if len(given) > limits.labels:
        raise _unfit("candidate_labels", f"{len(given)} are more than the {limits.labels} that a request may have")
    labels: dict[str, None] = {}
    for number, text in enumerate(given, 1):
        stripped = text.strip()
        if not stripped:
            raise _unfit("candidate_labels", f"label {number} is empty")
        # Before anything else is done with it: normalising takes a time that grows with the square of the length.
        _check_text("candidate_labels", f"label {number}", stripped, limits)
        label = unicodedata.normalize("NFC", stripped)
        if label in labels:
            raise _unfit("candidate_labels", f'"{_shown(label)}" is there twice')
        labels[label] = None
    return tuple(labels)


def _seeds(parameters: ClassifyParameters, limits: LimitConfig) -> tuple[int, ...]:
    seeds = parameters.seeds or ()
    if len(seeds) > limits.seeds:
        raise _unfit("seeds", f"{len(seeds)} are more than the {limits.seeds} that a request may have")
    several = len(set(seeds)) == len(seeds) and parameters.seed is None
    if seeds and (not several or isinstance(parameters, WindowParameters)):
        raise _unfit("seeds", "are distinct ones, in the place of seed, and of whole videos only")
    return seeds


def _template(template: str | None, limits: LimitConfig) -> str | None:
    if template is None:
        return None
    _check_text("hypothesis_template", "it", template, limits)
    if template.count("{}") != 1:
        raise _unfit("hypothesis_template", "must hold {} once, where the label goes, as in: a video of a {}.")
    return template


def _check_text(field: str, what: str, text: str, limits: LimitConfig) -> None:
    if len(text) > limits.label_length:
        raise _unfit(field, f"{what} has {len(text)} characters, and {limits.label_length} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise _unfit(field, f"{what} holds control characters")


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _unfit(field: str, what: str) -> RequestError:
    return RequestError("invalid-parameters", f"{field}: {what}")
