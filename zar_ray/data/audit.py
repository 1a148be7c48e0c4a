"""What `zar data audit` does: looks for the mistakes that lists, label files and manifests are known to have.

Nothing is taken on trust that can be checked: many file names and folders carry the class, so a list can be held
against its label map without a video or any other list at hand.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Literal

from zar_ray.data.benchmarks.layout import Files, located
from zar_ray.data.benchmarks.lists import VideoList, read_labels, read_list, read_lists
from zar_ray.data.classes import class_list, name_key
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.listing import UCF101, YOUTUBE, Listing, source_of
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest
from zar_ray.data.options import AuditConfig
from zar_ray.data.protocols import Benchmark, SplitSpec
from zar_ray.errors import ConfigError, ManifestError
from zar_ray.storage import is_uri

# "wrong" needs mending, "warning" needs a look, "note" is worth knowing.
Level = Literal["ok", "note", "warning", "wrong"]

_HMDB = re.compile(r"(?P<title>.*)_[fulh]_(?:nm|cm)_np\d_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: a line, and more of them in detail."""

    check: str
    level: Level
    text: str
    details: tuple[str, ...] = ()
    count: int = 0  # how many videos or classes it is about
    total: int = 0  # of how many


@dataclass(frozen=True)
class AuditReport:
    """All findings on one or several lists or a manifest."""

    findings: tuple[Finding, ...] = ()

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
        renamed = {new: old for name in known_benchmarks() for new, old in load_benchmark(name).renamed.items()}
        findings.append(check_shared_classes(names, train_names, renamed))
    return AuditReport(tuple(findings))


def check_counts(manifest: Manifest, benchmark: Benchmark | None = None) -> list[Finding]:
    """Compares splits with their published counts; by default of all benchmarks that the manifest's name is for."""
    everything = [load_benchmark(name) for name in known_benchmarks()]
    findings = []
    for one in [benchmark] if benchmark else [one for one in everything if one.data == manifest.name]:
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


def _subject(given: Manifest | VideoList) -> Listing:
    """What is audited; a list's lines are videos without a file, so one may occur twice."""
    if isinstance(given, Manifest):
        return Listing(tuple(given.rows()), given.class_names, name=given.name)
    return Listing(given.videos, given.class_names, name=Path(given.place).name)


def _training(options: AuditConfig) -> tuple[Listing | None, tuple[str, ...] | None]:
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
    return Listing(tuple(videos), tuple(found), name=title), names or tuple(found)


def audit(subject: Listing, train: Listing | None = None, root: Path | None = None) -> list[Finding]:
    """All checks of one list or manifest by itself, and against a training set.

    Raises:
        ManifestError: The folder of the videos, `root`, cannot be read.
    """
    findings = [*check_labels(subject), check_duplicates(subject), *check_own_splits(subject)]
    if train is not None:
        findings += check_overlap(subject, train)
    findings += [check_classes_used(subject), *check_files(subject, root)]
    return findings


def check_labels(subject: Listing) -> list[Finding]:
    """Holds labels against the classes that file names or folders carry."""
    keys = {name_key(name) for name in subject.class_names}
    # A title may end in another class's name ("kick" before "_ball"), so all of HMDB51's names take part, the longest
    # first.
    longest = sorted((*class_list("hmdb51"), *subject.class_names), key=len, reverse=True)
    endings = {name.replace(" ", "_"): name for name in longest}
    wrong: Counter[tuple[str, str]] = Counter()
    spelled: Counter[tuple[str, str]] = Counter()
    agreeing: Counter[str] = Counter()
    names = set(subject.class_names)
    for video in subject.videos:
        said = _carried(video, keys, endings) if len(video.label_names) == 1 else None
        if said is None:
            continue
        (label,) = video.label_names
        # Two classes of one map may differ by punctuation alone.
        if name_key(said) != name_key(label) or (said != label and said in names):
            wrong[said, label] += 1
            continue
        agreeing[label] += 1
        if said.replace("_", " ") != label.replace("_", " "):
            spelled[said, label] += 1
    name, total = subject.name, len(subject.videos)
    if not wrong and not agreeing:
        return [Finding("labels", "note", f"{name}: no file name or folder carries a class, so labels go unchecked")]
    findings = [
        Finding("labels", "ok", f"{name}: the {agreeing.total():,} labels that names carry agree", (), 0, total)
    ]
    if wrong:
        pairs = [f'{n} of "{said}" are labelled "{label}"' for (said, label), n in wrong.most_common(_SHOWN)]
        if len(wrong) > _SHOWN:
            pairs.append(f"... and {len(wrong) - _SHOWN} more pairs of names")
        text = f"{name}: {wrong.total():,} of {total:,} videos are labelled other than their file names or folders say"
        details = (*pairs, *_exchanged(wrong, agreeing, subject.class_names))
        findings = [Finding("labels", "wrong", text, details, wrong.total(), total)]
    if spelled:
        pairs = [f'"{said}" for "{label}" ({n})' for (said, label), n in spelled.most_common(_SHOWN)]
        text = f"{name}: file names spell {len(spelled)} classes in another way: {', '.join(pairs)}"
        findings.append(Finding("spelling", "note", text, (), spelled.total(), total))
    return findings


def check_duplicates(subject: Listing) -> Finding:
    """Looks for videos that occur twice: a list's line, or a manifest's file under two names."""
    seen = Counter(identity(video.video_id) for video in subject.videos)
    # A copy in another folder has its file's name and size.
    copies = Counter((PurePosixPath(video.video_id).name, video.size) for video in subject.videos if video.size)
    twice = [path for path, count in seen.items() if count > 1]
    twice += [name for (name, _), count in copies.items() if count > 1 and identity(name) not in twice]
    name, total = subject.name, len(subject.videos)
    fine = f"{name}: each of {total:,} videos occurs once"
    return _finding("duplicates", "wrong", twice, total, f"{name}: {len(twice):,} videos occur more than once", fine)


def check_own_splits(subject: Listing) -> list[Finding]:
    """Looks for videos that are in two of the parts train, val and test of one division."""
    members: defaultdict[str, list[VideoRow]] = defaultdict(list)
    for video in subject.videos:
        for split in video.memberships:
            members[split].append(video)
    findings = []
    divisions = (re.fullmatch(r"(?:train|val|test)(\d*)", split) for split in members)
    for number in sorted({match[1] for match in divisions if match}):
        parts = [split for part in ("train", "val", "test") if (split := f"{part}{number}") in members]
        for one, other in combinations(parts, 2):
            trained = replace(subject, name=one, videos=tuple(members[one]))
            tested = replace(subject, name=f"{subject.name}, {other}", videos=tuple(members[other]))
            findings += check_overlap(tested, trained)
    return findings


def check_overlap(subject: Listing, train: Listing) -> list[Finding]:
    """Looks for training videos among the tested ones, and for parts of one source video on both sides."""
    total = len(subject.videos)
    tested = [video.video_id for video in subject.videos]
    trained = {identity(video.video_id) for video in train.videos}
    common = [path for path in tested if identity(path) in trained]
    text = f"{subject.name}: {len(common):,} of {total:,} videos are also in {train.name}"
    fine = f"{subject.name}: none of {total:,} videos is in {train.name}"
    findings = [_finding("overlap", "wrong", common, total, text, fine)]
    sources = {source for video in train.videos if (source := source_of(video.video_id)) is not None}
    near = [path for path in tested if source_of(path) in sources and identity(path) not in trained]
    if near:
        text = f"{subject.name}: {len(near):,} of {total:,} videos are other parts of source videos in {train.name}"
        findings.append(_finding("sources", "warning", near, total, text))
    return findings


def check_classes_used(subject: Listing) -> Finding:
    """Looks for classes of the label map that no video has."""
    used = {name for video in subject.videos for name in video.label_names}
    idle = [name for name in subject.class_names if name not in used]
    total = len(subject.class_names)
    text = f"{subject.name}: {len(idle)} of {total} classes have no video"
    return _finding("classes", "note", idle, total, text, f"{subject.name}: all {total} classes have videos")


def check_files(subject: Listing, root: Path | None = None) -> list[Finding]:
    """Looks for missing and broken files; without a root at a manifest's own paths, and for a list not at all.

    Raises:
        ManifestError: The folder cannot be read.
    """
    if root is None and not any(video.path for video in subject.videos):
        return []
    if root is not None:
        named = tuple({video.video_id: video for video in subject.videos}.values())
        found, _ = located(named, Files(root))
        gone = [video for video, file in zip(named, found, strict=True) if file is None]
    else:
        local = [video for video in subject.videos if video.path and not is_uri(video.path)]
        gone = [video for video in local if not Path(video.path).is_file()]
    absent = {id(video) for video in gone}
    broken = [video for video in subject.videos if video.error is not None and id(video) not in absent]
    name, total = subject.name, len(subject.videos)
    findings = []
    if gone:
        by_class = Counter(label for video in gone for label in video.label_names)
        most = [f"{label}: {count}" for label, count in by_class.most_common(_SHOWN)]
        text = f"{name}: {len(gone):,} of {total:,} files are missing"
        findings.append(_finding("files", "wrong", [video.video_id for video in gone], total, text, more=most))
    if broken:
        details = tuple(f"{video.video_id}: {video.error}" for video in broken[:_SHOWN])
        text = f"{name}: {len(broken):,} of {total:,} files cannot be read"
        findings.append(Finding("files", "wrong", text, details, len(broken), total))
    return findings or [Finding("files", "ok", f"{name}: all {total:,} files are there", (), 0, total)]


def check_lists_together(subjects: Sequence[Listing]) -> list[Finding]:
    """Compares lists with each other: videos in several of them, and labels that contradict each other."""
    if len(subjects) < 2:
        return []
    labels: defaultdict[str, set[str]] = defaultdict(set)
    places: defaultdict[str, set[int]] = defaultdict(set)
    for number, subject in enumerate(subjects):
        for video in subject.videos:
            places[identity(video.video_id)].add(number)
            labels[identity(video.video_id)].update(map(name_key, video.label_names))
    shared = [path for path, lists in places.items() if len(lists) > 1]
    differing = [path for path in shared if len(labels[path]) > 1]
    names, total = ", ".join(subject.name for subject in subjects), len(places)
    level: Level = "note" if shared else "ok"
    text = f"{names}: {len(shared):,} of {total:,} videos are in more than one list"
    findings = [Finding("lists", level, text, (), len(shared), total)]
    if differing:
        text = f"{names}: {len(differing):,} videos have another class in another list"
        findings.append(_finding("lists", "wrong", differing, total, text))
    return findings


def check_shared_classes(names: Sequence[str], trained: Sequence[str], renamed: Mapping[str, str]) -> Finding:
    """Looks for tested classes that are trained, too; `renamed` has a trained class's name by the tested one's."""
    keys = {name_key(name) for name in trained}
    there = {name: name if name_key(name) in keys else renamed.get(name, name) for name in names}
    shared = {name: old for name, old in there.items() if name_key(old) in keys}
    total, among = len(names), f"among the {len(trained)} of training"
    text = f"{len(shared)} of {total} classes are {among}, so no zero-shot for them"
    called = [f'"{new}" is called "{old}" there' for new, old in shared.items() if new != old]
    return _finding("zero-shot", "warning", [*shared], total, text, f"none of {total} classes is {among}", called)


def identity(path: str) -> str:
    """What tells a video from others: the file's name where a benchmark's names are unique, else the whole path."""
    stem = PurePosixPath(path).stem
    unique = any(pattern.fullmatch(stem) for pattern in (_HMDB, UCF101, YOUTUBE))
    return stem if unique else str(PurePosixPath(path))


def _carried(video: VideoRow, class_keys: Collection[str], endings: Mapping[str, str]) -> str | None:
    """The class that a path carries: in HMDB51's and UCF101's file names, else in a folder."""
    if match := UCF101.fullmatch(video.stem):
        return match["name"]
    if match := _HMDB.fullmatch(video.stem):
        title = f"_{match['title']}"
        return next((name for ending, name in endings.items() if title.endswith(f"_{ending}")), None)
    folders = reversed(PurePosixPath(video.video_id).parts[:-1])
    return next((folder for folder in folders if name_key(folder) in class_keys), None)


def _exchanged(wrong: Counter[tuple[str, str]], agreeing: Counter[str], names: Sequence[str]) -> list[str]:
    """Says which two labels stand in each other's place, where no video of either is labelled right."""
    position = {name_key(name): number for number, name in enumerate(names)}
    pairs = {(name_key(said), name_key(label)) for said, label in wrong}
    right = {name_key(name) for name in agreeing}
    found = []
    for said, label in wrong:
        one, other = position.get(name_key(said), -1), position[name_key(label)]
        back = (name_key(label), name_key(said)) in pairs
        if 0 <= one < other and back and not right & {name_key(said), name_key(label)}:
            found.append(f'labels {one} "{names[one]}" and {other} "{names[other]}" are exchanged in the label map')
    return found


def _finding(
    check: str,
    level: Level,
    problems: Sequence[str],
    total: int,
    text: str,
    fine: str = "",
    more: Sequence[str] = (),
) -> Finding:
    """What a check says of its problems, some of them shown, and `more` lines; or that all is fine."""
    if not problems:
        return Finding(check, "ok", fine, (), 0, total)
    others = f", ... ({len(problems) - _SHOWN:,} more)" if len(problems) > _SHOWN else ""
    shown = ", ".join(problems[:_SHOWN]) + others
    return Finding(check, level, text, (shown, *more), len(problems), total)
