"""What a paper that reports a run says of it: its protocol as a paragraph of LaTeX, and the entries that this cites.

All of it is made from the run's record. Methods, systems and benchmarks declare their sources; their entries are those
of conf/references.bib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from zar_ray.adaptation.methods import METHODS
from zar_ray.data.class_texts import is_context_file
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.options import CONTEXT
from zar_ray.errors import ConfigError
from zar_ray.models.systems.registry import find_system
from zar_ray.options.layers import conf_dir, leaves
from zar_ray.reporting.latex import latex_text
from zar_ray.reporting.numbers import METRICS, counted, failed_count
from zar_ray.results.record import RunSummary
from zar_ray.results.study_record import FinishedRun, FinishedStudy

_ZAR, _CLIP, _OPEN_CLIP = "liang2025zar", "radford2021clip", "cherti2023openclip"
_ENTRY = re.compile(r"^@\w+\{(?P<key>[^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)


def references() -> dict[str, str]:
    """The BibTeX entries of conf/references.bib by their keys."""
    text = (conf_dir() / "references.bib").read_text(encoding="utf-8")
    return {entry["key"]: entry[0] for entry in _ENTRY.finditer(text)}


def cite(study: FinishedStudy) -> str:
    """A study's protocol as a paragraph of LaTeX, and below it the BibTeX entries that it cites.

    Raises:
        ConfigError: A source that something declares is neither a key of conf/references.bib nor an entry.
    """
    sources = _Sources()
    sources.cited(_ZAR)
    paragraph = " ".join(_sentences(study, sources))
    # A comment ends with its line.
    unknown = "\n".join(f"% {' '.join(line.split())}" for line in dict.fromkeys(sources.unknown))
    return "\n\n".join([paragraph, *([unknown] if unknown else []), *sources.entries.values()])


@dataclass
class _Sources:
    """What is cited, by its key in the order in which that is done first, and what has no source."""

    entries: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    known: Mapping[str, str] = field(default_factory=references)

    def cited(self, *declared: str | None, what: str = "") -> str:
        """The command that cites sources; of `what` without any a line says so."""
        keys = []
        for source in filter(None, declared):
            whole = _ENTRY.match(source.strip())
            key = whole["key"] if whole else source
            if whole is None and source not in self.known:
                raise ConfigError(
                    f"{what or source}: its source {source} is no key of conf/references.bib and no entry"
                )
            self.entries[key] = whole[0] if whole else self.known[source]
            keys.append(key)
        if not keys:
            self.unknown.append(f"{what}: declares no source; cite it yourself")
            return ""
        return rf"~\cite{{{','.join(keys)}}}"


def _sentences(study: FinishedStudy, sources: _Sources) -> Iterator[str]:
    record, first = study.record, study.runs[0]
    yield _videos(first, sources)
    yield _models(study, sources)
    yield _views(study)
    yield _prompts(first.config)
    yield from _methods(study, sources)
    varied = {axis: dict.fromkeys(cell.coordinates[axis] for cell in record.cells) for axis in record.axes}
    if varied:
        shown = "; ".join(f"{latex_text(axis)} {_listed(map(latex_text, labels))}" for axis, labels in varied.items())
        yield f"What varies is: {shown}; what is said above of options is of the first."
    yield _scores(record.whole, first.summary)
    yield _software(study)


def _videos(run: FinishedRun, sources: _Sources) -> str:
    summary, title, source = run.summary, run.summary.dataset, None
    if summary.dataset in known_benchmarks():
        benchmark = load_benchmark(summary.dataset)
        title, source = benchmark.title, benchmark.reference
    cited = sources.cited(source, what=f"dataset {summary.dataset}")
    splits = [
        f"{latex_text(one.name)} ({counted(one.videos, 'video')}, {one.classes} classes)" for one in summary.splits
    ]
    if len(splits) > 1:
        what = f"{counted(summary.videos, 'video')} in {len(splits)} splits, {_listed(splits)}"
    else:
        what = f"{counted(summary.videos, 'video')}, each classified among {summary.classes} classes"
    split = f", split {latex_text(summary.split)}" if summary.split else ""
    limit = run.config.get("limit")
    part = f" (limited to {limit})" if limit is not None else ""
    labels = ", with the labels of published files, mistakes included" if run.config.get("legacy_labels") else ""
    return f"We evaluate on {latex_text(title)}{cited}{split}: {what}{part}{labels}."


def _models(study: FinishedStudy, sources: _Sources) -> str:
    shown = {}
    for run in study.runs:
        summary, config = run.summary, run.config
        system = find_system(str(config.get("model")))
        tag, file = config.get("pretrained"), config.get("checkpoint")
        keys = [_CLIP] if tag == "openai" or file else [_CLIP, _OPEN_CLIP]
        if system is not None:
            keys = [system.reference, *keys] if system.reference else keys
        weights = f"the weights {tag}"
        if summary.random_weights:
            weights = "untrained weights"
        elif file:
            weights = f"the weights of {PurePath(str(file)).name}"
            if system is None:
                sources.unknown.append(f"weights {PurePath(str(file)).name}: say how they were trained")
        size = ""
        if (cost := summary.model_cost) is not None:
            size = f", {cost.parameters / 1e6:,.1f}\\,M parameters, {cost.input_size} pixels"
        cited = sources.cited(*keys)
        name = latex_text(summary.model)
        shown[f"{name}{cited} with {latex_text(weights)} (fingerprint {summary.model_fingerprint}{size})"] = None
    return f"The {'model is' if len(shown) == 1 else 'models are'} {_listed(shown)}."


def _views(study: FinishedStudy) -> str:
    run = study.runs[0]
    views = run.config["views"]
    temporal, spatial = (int(one) for one in views["eval_views"].split("x"))
    several = temporal * spatial > 1
    text = f"A decision is made on {counted(temporal * spatial, 'evaluation view')}"
    text += f" ({temporal} in time, {spatial} in space)" if several else ""
    text += f" of {counted(views['eval_frames'], 'frame')}{' each, whose scores are averaged' if several else ''}"
    methods = [METHODS[case.method] for case in run.summary.cases if case.method in METHODS]
    if any(method.needs_views for method in methods):
        rates = views["rates"]
        count = len(rates) * views["views_per_rate"] * views["crops"]
        text += (
            f"; methods that adapt to a video's views see {count} of {counted(views['frames'], 'frame')}: "
            f"{counted(views['views_per_rate'], 'segment')} of each length ({_listed(f'{rate:g}' for rate in rates)} of"
            f" the video) in {counted(views['crops'], 'crop')}"
        )
    if views["short_side"] is not None:
        text += f"; frames are resized to a short side of {views['short_side']} pixels"
    return f"{text}."


def _prompts(config: Mapping[str, Any]) -> str:
    template, texts, context = (config.get(name) for name in ("template", "class_texts", "context"))
    if texts is not None:
        said = f"Class texts are those of {PurePath(str(texts)).name}"
        said += f", in the template {template}" if template else ""
    elif template is not None:
        said = f"Class names stand in the template {template}"
    elif is_context_file(context):
        said = f"Class names stand behind the learned context of {PurePath(str(context)).name}"
    else:
        words = context or CONTEXT
        said = f"Class names stand behind the context “{words}”"
        said = said if context else f"{said}, or the model's own"
    style = config.get("name_style", "raw")
    return latex_text(f"{said}, spelt by {style}." if style != "raw" else f"{said}.")


def _methods(study: FinishedStudy, sources: _Sources) -> Iterator[str]:
    run = study.runs[0]
    for name in dict.fromkeys(case.method for case in run.summary.cases):
        method = METHODS.get(name)
        cited = sources.cited(method.reference if method else None, what=f"method {name}")
        own = leaves(run.config.get(name) or {})
        told = "; ".join(f"{key} {_value(value)}" for key, value in own.items())
        about = f": {method.description}" if method else ""
        options = f" ({told})" if told else ""
        yield f"{latex_text(name)}{cited} {latex_text(f'is run{about}{options}.')}"
    if study.record.whole.order_dependent:
        yield "Methods that remember earlier videos see them in the order of the data set's list."


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value)


def _scores(whole: RunSummary, first: RunSummary) -> str:
    metrics = [name for case in first.cases[:1] for name in case.estimates("after")]
    if not metrics:
        return "The videos have no labels, so nothing is scored."
    failed = f"{whole.failed} of {counted(whole.videos, 'video')} could not be used and {failed_count(metrics[0])}"
    failed = failed if whole.failed else "no video failed"
    kinds = dict.fromkeys(one.kind for one in first.averages)
    average = f"; over splits we report the {_listed('harmonic mean' if k == 'harmonic' else k for k in kinds)}"
    changes = [case for case in first.cases if case.change is not None]
    test = ""
    if changes:
        single = all(case.headline is not None and not case.groups for case in changes)
        exact = "McNemar's exact test" if single else "exchanging both at random, source by source"
        test = f"; before and after adaptation are compared on the same videos by {exact}"
    shown = _listed(METRICS[name] for name in metrics)
    return latex_text(f"We report {shown} with 95 % intervals{average if kinds else ''}{test}; {failed}.")


def _software(study: FinishedStudy) -> str:
    about, config = study.provenance, study.config
    git, packages = about.get("git"), about.get("packages") or {}
    version = f"zar-ray {about.get('zar_ray', '')}".strip() + (f" (commit {git})" if git else "")
    torch = f" on PyTorch {packages['torch']}" if packages.get("torch") else ""
    seeds = dict.fromkeys(str(run.summary.seed) for run in study.runs)
    seed = f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}"
    return latex_text(f"All runs are by {version}{torch}, the image encoder in {config.get('precision')}, {seed}.")


def _listed(texts: Any) -> str:
    """Texts as a sentence lists them."""
    several: Sequence[str] = list(texts)
    return " and ".join(filter(None, (", ".join(several[:-1]), several[-1]))) if several else ""
