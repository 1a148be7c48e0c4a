"""What `zar data audit` does: reads lists, label files and manifests, and reports what the checks find in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zar_ray.data.audit_checks import (
    Audited,
    Finding,
    Level,
    audit,
    check_lists_together,
    check_shared_classes,
)
from zar_ray.data.benchmarks.lists import VideoList, read_labels, read_list, read_lists
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest
from zar_ray.data.options import AuditConfig
from zar_ray.data.protocols import Benchmark, SplitSpec
from zar_ray.errors import ConfigError, ManifestError


@dataclass(frozen=True)
class AuditReport:
    """All findings on one or several lists or a manifest."""

    findings: tuple[Finding, ...] = field(default=())

    @property
    def wrong(self) -> bool:
        """Whether anything needs mending."""
        return any(finding.level == "wrong" for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        for finding in self.findings:
            yield f"{finding.level:<7}  {finding.check:<{width}}  {finding.text}"
            yield from (f"{'':<7}  {'':<{width}}    {detail}" for detail in finding.details)


def run_audit(options: AuditConfig) -> AuditReport:
    """Reads what is asked for and audits it.

    Raises:
        ConfigError: Options do not go together.
        ManifestError: A file cannot be read.
    """
    if (options.manifest is None) == (not options.list):
        raise ConfigError("zar data audit: give a manifest, or --list FILE with --labels FILE")
    benchmark = load_benchmark(options.dataset) if options.dataset is not None else None
    train, train_names = _training(options)
    findings: list[Finding] = []
    if options.manifest is not None:
        if options.labels:
            raise ConfigError("zar data audit: --labels goes with --list; a manifest holds its class names")
        manifest = read_manifest(options.manifest)
        subjects = [_subject(manifest)]
        findings += audit(subjects[0], train, options.root)
        findings += check_counts(manifest, benchmark)
    else:
        lists = read_lists(options.list, options.labels, benchmark.splits if benchmark else ())
        subjects = [_subject(one) for one in lists]
        for subject in subjects:
            findings += audit(subject, train, options.root)
        findings += check_lists_together(subjects)
        for one in lists:
            if one.spec is not None:
                findings.append(_count_finding(Path(one.place).name, len(one.videos), one.spec))
    if train_names is not None:
        names = tuple(dict.fromkeys(name for subject in subjects for name in subject.class_names))
        findings.append(check_shared_classes(names, train_names, _renamed()))
    return AuditReport(tuple(findings))


def check_counts(manifest: Manifest, benchmark: Benchmark | None = None) -> list[Finding]:
    """Compares a benchmark's splits with their published counts.

    Args:
        manifest: The videos.
        benchmark: The benchmark; by default all that the manifest's name says it is for.
    """
    if benchmark is not None:
        chosen: Iterable[Benchmark] = (benchmark,)
    else:
        chosen = (b for b in map(load_benchmark, known_benchmarks()) if b.data == manifest.name)
    findings = []
    for one in chosen:
        for spec in one.splits:
            name = f"{one.name}, split {spec.name}"
            try:
                (split,) = one.evaluations(manifest, spec.name)
            except ManifestError as error:
                findings.append(Finding("counts", "wrong" if benchmark else "note", str(error)))
                continue
            findings.append(_count_finding(name, len(split), spec))
            if split.relabelled:
                text = f"{name}: published label files call {split.relabelled:,} of {len(split):,} videos otherwise"
                findings.append(Finding("legacy", "note", text, (), split.relabelled, len(split)))
    return findings


def _count_finding(name: str, count: int, spec: SplitSpec) -> Finding:
    if spec.count is None:
        return Finding("counts", "note", f"{name}: {count:,} videos; no published count to compare", (), count)
    about = "about " if spec.about else ""
    text = f"{name}: {count:,} videos, {about}{spec.count:,} published"
    level: Level = "ok" if count == spec.count else "warning" if spec.about else "wrong"
    return Finding("counts", level, text, (), count, spec.count)


def _subject(given: Manifest | VideoList) -> Audited:
    if isinstance(given, Manifest):
        return Audited(given.name, tuple(given.rows()), given.class_names)
    return Audited(Path(given.place).name, given.videos, given.class_names)


def _training(options: AuditConfig) -> tuple[Audited | None, tuple[str, ...] | None]:
    """The training videos and classes that the options name."""
    names = read_labels(options.train_labels) if options.train_labels is not None else None
    videos: list[VideoRow] = []
    found: dict[str, None] = {}
    for place in options.train:
        if place.endswith(".parquet"):
            subject = _subject(read_manifest(place))
        elif options.train_labels is None:
            raise ConfigError(f"zar data audit: --train {place} is a list; name its labels with --train-labels FILE")
        else:
            subject = _subject(read_list(place, options.train_labels))
        videos += subject.videos
        found |= dict.fromkeys(name for video in subject.videos for name in video.label_names)
    if not options.train:
        return None, names
    title = ", ".join(Path(place).name for place in options.train)
    return Audited(title, tuple(videos), tuple(found)), names or tuple(found)


def _renamed() -> dict[str, str]:
    return {new: old for name in known_benchmarks() for new, old in load_benchmark(name).renamed.items()}
