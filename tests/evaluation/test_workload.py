"""What vectors say of videos, class sets and rows is what is said of each video by itself."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.evaluation.recovery import lacking
from zar_ray.evaluation.spec import MODELS
from zar_ray.evaluation.workload import Workload, of_class_set
from zar_ray.results.case import Case
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.storage import Storage

NAMES = [("a", "b"), ("b", "a"), ("a", "b", "c")]
CASES = [Case(f"zar-{s}{m}", "zar", class_set=s, model=m) for s in range(3) for m in range(2)]
VIDEOS = [f"v{number}" for number in range(6)]


def rows(**of_video):
    return [VideoRow(video, f"/{video}", frames=9, width=9, height=9, **of_video.get(video, {})) for video in VIDEOS]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(VIDEOS), min_size=1)), min_size=1, max_size=4)
)
def test_a_videos_class_sets_and_right_labels_are_those_of_its_splits(splits):
    made, expected = [], {}
    for number, (names, videos) in enumerate(splits):
        ids = tuple(sorted(videos))
        # Splits of the same names agree on what is right.
        labels = tuple((int(video[1]) % 2,) if video != "v3" else () for video in ids)
        made.append(EvaluationSplit("d", str(number), names, ids, labels))
        for video, right in zip(ids, labels, strict=True):
            expected.setdefault(video, {})[list(dict.fromkeys(one for one, _ in splits)).index(names)] = list(right)
    workload = Workload.of(Manifest.of(rows(v2={"error": "gone"}), ("a", "b"), "/", "d"), made)
    table = workload.table()
    assert table["video_id"].to_pylist() == [video for video in VIDEOS if video in expected]
    for row in table.to_pylist():
        own = dict(sorted(expected[row["video_id"]].items()))
        assert (row["class_sets"], row["right_ids"]) == (list(own), list(own.values()))
    for class_set in range(3):
        inside = [class_set in expected[video] for video in table["video_id"].to_pylist()]
        assert of_class_set(table, class_set).tolist() == inside
    usable = [sum(one in own and video != "v2" for video, own in expected.items()) for one in range(3)]
    assert workload.usable() == tuple(usable[: len(workload.class_sets)])
    cases = [case for case in CASES if case.class_set < len(workload.class_sets)]
    found = {case: set(videos.to_pylist()) for case, videos in workload.expected_rows(cases).items()}
    assert found == {
        case.case_id: {video for video, own in expected.items() if case.class_set in own} for case in cases
    }


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.tuples(st.sampled_from(VIDEOS), st.sampled_from(CASES))), st.sets(st.sampled_from(VIDEOS), min_size=1)
)
def test_models_that_lack_a_row_are_told_of_each_video(tmp_path_factory, done, second):
    splits = [
        EvaluationSplit("d", str(number), NAMES[number], ids, ((0,),) * len(ids))
        for number, ids in enumerate((tuple(VIDEOS), tuple(sorted(second))))
    ]
    workload = Workload.of(Manifest.of(rows(), ("a", "b"), "/", "d"), splits)
    folder = RunFolder(Storage(str(tmp_path_factory.mktemp("run"))))
    if done:
        folder.add(to_table(ResultRow(video, case.case_id, "zar") for video, case in done))
    cases = [case for case in CASES if case.class_set < 2]
    found = lacking(workload.table(), SimpleNamespace(models=(None, None), cases=cases), Ledger(folder))
    expected = {
        video: lacks
        for video in VIDEOS
        if (
            lacks := sorted(
                {c.model for c in cases if (video, c) not in done and (c.class_set == 0 or video in second)}
            )
        )
    }
    assert dict(zip(found["video_id"].to_pylist(), found[MODELS.name].to_pylist(), strict=True)) == expected
    assert lacking(found, SimpleNamespace(models=(None, None), cases=cases), Ledger(folder)).equals(found)


@given(
    st.lists(st.one_of(st.none(), st.sets(st.sampled_from("xyz"), min_size=1)), min_size=6, max_size=6),
    st.sets(st.sampled_from("xyzw")),
)
@settings(max_examples=25, deadline=None)
def test_members_of_splits_are_those_whose_memberships_say_so(lists, wanted):
    of_video = {v: {"split": "w", "splits": one and tuple(sorted(one))} for v, one in zip(VIDEOS, lists, strict=True)}
    manifest = Manifest.of(rows(**of_video), ("a", "b"), "/", "d")
    expected = [not wanted.isdisjoint(row.memberships) for row in manifest.rows()]
    assert manifest.members(wanted).tolist() == expected
