"""The Explorer's page as a file: what it holds, what it may do, and that no name or reason breaks out of its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import CLASSES, write_finished_run
from many_videos import write_many_videos

from zar_ray.reporting import explorer
from zar_ray.reporting.explorer import explorer_of, render_explorer
from zar_ray.reporting.pages import Card, Cards, Group, Page, Picture, Section
from zar_ray.reporting.run_data import StudyData
from zar_ray.results.stored_rows import StoredRows

SIGNS = ("</script><script>alert(1)</script>", "<!-- <script>", "a\u2028b\u2029c", "quote \" ' & \\ `${x}`")
PICTURE = Picture.of(b"jpeg", "image/jpeg", "a video")


class Elements(HTMLParser):
    """The elements of a page, with the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        self.found.append([f"/{tag}", {}, ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data

    def of(self, tag):
        return [(attrs, text) for name, attrs, text in self.found if name == tag]


def page_of(*cards: Card) -> Page:
    return Page("mine", "a run", None, (), (), [Group("zar", [Section("Videos", [Cards("Most helped", cards)])])])


def explored(folder: Path, *cards: Card, report: str | None = None):
    """The elements of a run's Explorer, and its data."""
    place = report or str(folder / "report.html")
    elements = Elements(render_explorer(StudyData.read(str(folder)), page_of(*cards), place))
    (data,) = (text for attrs, text in elements.of("script") if attrs.get("id") == "data")
    return elements, json.loads(data)


def columns(case: dict) -> list[str]:
    return [name for name, value in case.items() if isinstance(value, list)]


def replaced(folder: Path, **changes) -> None:
    """Replaces columns of a run's predictions, each by a function of its values."""
    table = pq.read_table(folder / "predictions.parquet")
    for name, change in changes.items():
        place = table.column_names.index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), values)
    pq.write_table(table, folder / "predictions.parquet")


def test_every_case_of_every_cell_is_there_as_columns(tmp_path):
    cells = {(("setting", f"lr {rate:g}"),): {"zar": {"lr": rate}} for rate in (0.005, 0.02)}
    folder = write_finished_run(tmp_path / "mine", cells=cells, videos=9, failures=2)
    _, data = explored(folder)
    assert [case["title"] for case in data["cases"]] == [
        f"lr {rate}: {method}" for rate in ("0.005", "0.02") for method in ("zero_shot", "zar")
    ]
    assert [case["adapts"] for case in data["cases"]] == [False, True] * 2
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    for case, method in zip(data["cases"][:2], ("zero_shot", "zar"), strict=True):
        assert {len(case[name]) for name in columns(case)} == {9}
        names = data["classes"][case["classes"]]
        for at, row in enumerate(one for one in table if one["case_id"] == method):
            assert data["ids"][case["video"][at]] == row["video_id"]
            assert names[case["label"][at]] == CLASSES[row["label_id"]]
            if row["error"]:
                assert data["texts"][case["reason"][at]] == f"{row['error_stage']}: {row['error']}"
                assert case["after"][at] == case["confidence_before"][at] == case["entropy_after"][at] == -1
                continue
            assert case["reason"][at] == case["warning"][at] == -1
            for when in ("before", "after"):
                assert case[when][at] == row[f"top5_{when}"][0]
                assert case[f"confidence_{when}"][at] == round(1e4 * row[f"top5_scores_{when}"][0])
                assert case[f"entropy_{when}"][at] == round(1e3 * row[f"entropy_{when}"])
    assert data["classes"] == [list(CLASSES)]


@pytest.mark.parametrize("sign", SIGNS)
def test_no_name_breaks_out_of_the_data(tmp_path, sign):
    folder = write_finished_run(tmp_path / "mine", videos=6, failures=1, classes=("archery", f"class {sign}"))
    renamed = {one: f"v0{one}.mp4" for one in range(6)} | {3: f"v03 {sign}.mp4"}
    replaced(
        folder,
        video_id=lambda ids: [renamed[int(one[1:3])] for one in ids],
        error=lambda said: [one and f"{sign} {one}" for one in said],
    )
    manifest = pq.read_table(folder / "manifest.parquet")
    ids = pa.array(list(renamed.values()))
    pq.write_table(manifest.set_column(0, manifest.schema.field(0), ids), folder / "manifest.parquet")
    elements, data = explored(folder)
    assert renamed[3] in data["ids"]
    assert data["classes"][0][1] == f"class {sign}"
    assert any(sign in text for text in data["texts"])
    assert [attrs.get("type") for attrs, _ in elements.of("script")] == ["application/json", None]
    (raw,) = (text for attrs, text in elements.of("script") if attrs.get("id") == "data")
    assert not set("<>&\u2028\u2029") & set(raw)


def test_the_policy_names_this_script_and_this_style_and_nothing_else(tmp_path):
    elements, _ = explored(write_finished_run(tmp_path / "mine"))
    (policy,) = (attrs["content"] for attrs, _ in elements.of("meta") if "http-equiv" in attrs)

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (script,) = (text for attrs, text in elements.of("script") if "id" not in attrs)
    ((_, style),) = elements.of("style")
    assert [one.strip() for one in policy.split(";")] == [
        "default-src 'none'",
        f"script-src {named(script)}",
        f"style-src {named(style)}",
        "img-src data:",
        "media-src file:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    for tag, attrs, _ in elements.found:
        assert "style" not in attrs, f"{tag} has a style that the policy forbids"
        assert not [name for name in attrs if name.startswith("on")]
    addresses = [attrs[name] for _, attrs, _ in elements.found for name in ("href", "src") if name in attrs]
    assert addresses == ["data:,", "report.html"]


@pytest.mark.parametrize(("videos", "most"), [(900, 400), (500, 37)])
def test_of_too_many_videos_failed_wrong_and_changed_ones_are_kept(tmp_path, monkeypatch, videos, most):
    monkeypatch.setattr(explorer, "MOST_VIDEOS", most)
    names = tuple(f"class {number}" for number in range(20))
    folder = write_many_videos(tmp_path / "mine", videos, names, root=tmp_path, failed_every=60)
    _, data = explored(folder)
    (case,) = data["cases"]
    assert len(case["video"]) == most
    assert case["left_out"] == videos - most
    assert len(data["ids"]) == len(data["files"]) == most
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    failed = [row["video_id"] for row in rows if row["error"]]
    odd = [r["video_id"] for r in rows if not r["error"] and not (r["correct_before"] and r["correct_after"])]
    there = {data["ids"][video] for video in case["video"]}
    assert set(failed) <= there
    assert len(there & set(odd)) == min(len(odd), most - len(failed))
    assert len(there - set(odd) - set(failed)) == max(0, most - len(failed) - len(odd))
    # From the whole run, not from its beginning.
    assert max(there) > rows[int(0.9 * videos)]["video_id"]


def test_cases_share_the_room_of_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "MOST_ROWS", 14)
    _, data = explored(write_finished_run(tmp_path / "mine", videos=11))
    assert [(len(case["video"]), case["left_out"]) for case in data["cases"]] == [(7, 4)] * 2


def test_many_cells_are_one_pass_over_the_results(tmp_path, monkeypatch):
    passes = []
    pieces = StoredRows.pieces
    monkeypatch.setattr(StoredRows, "pieces", lambda rows, *given: passes.append(given) or pieces(rows, *given))
    for count in (1, 3):
        cells = {(("setting", f"lr {rate}"),): {"zar": {"lr": rate / 100}} for rate in range(1, count + 1)}
        data = StudyData.read(str(write_finished_run(tmp_path / f"{count}", cells=cells, videos=4)))
        passes.clear()
        render_explorer(data, page_of(), str(tmp_path / "report.html"))
        assert len(passes) == 1


def test_files_are_named_from_where_the_page_lies(tmp_path):
    root = tmp_path / "my videos #1 50%?"
    folder = write_finished_run(tmp_path / "runs" / "mine", videos=3, failures=0, root=root)
    _, data = explored(folder)
    assert data["files"] == [f"../../my%20videos%20%231%2050%25%3F/v0{number}.mp4" for number in range(3)]
    _, data = explored(folder, report=str(root / "page.html"))
    assert data["files"] == [f"v0{number}.mp4" for number in range(3)]
    _, data = explored(folder, report="s3://bucket/page.html")
    assert data["files"] == [None] * 3


def test_what_no_browser_could_open_is_no_clip(tmp_path):
    folder = write_finished_run(tmp_path / "mine", videos=4, failures=0)
    manifest = pq.read_table(folder / "manifest.parquet")
    for name, values in {
        "path": ["s3://bucket/v00.mp4", "/data/all.tar", "/data/v02.mp4", "/data/a:b.mp4"],
        "member": [None, "v01.mp4", None, None],
    }.items():
        place = manifest.column_names.index(name)
        manifest = manifest.set_column(place, manifest.schema.field(name), pa.array(values, pa.string()))
    pq.write_table(manifest, folder / "manifest.parquet")
    _, data = explored(folder, report="/data/page.html")
    assert data["files"] == [None, None, "v02.mp4", "a%3Ab.mp4"]


def test_the_videos_that_the_report_samples_have_their_pictures(tmp_path):
    folder = write_finished_run(tmp_path / "mine", videos=5, failures=0)
    cards = (Card("v03.mp4", "", (PICTURE, PICTURE)), Card("v01.mp4", "", ()), Card("gone.mp4", "", (PICTURE,)))
    _, data = explored(folder, *cards)
    assert data["pictures"] == {str(data["ids"].index("v03.mp4")): [PICTURE.uri] * 2}


def test_several_classes_a_video_and_none_are_told(tmp_path):
    _, data = explored(write_finished_run(tmp_path / "several", videos=4, failures=1, multi_label=True))
    assert [(case["several"], case["label"]) for case in data["cases"]] == [
        (True, [[0, 1], [1, 2], [2, 3], [0, 3]])
    ] * 2
    _, data = explored(write_finished_run(tmp_path / "none", videos=4, labelled=False))
    assert {tuple(case["label"]) for case in data["cases"]} == {(-1,) * 4}


def test_all_failed(tmp_path):
    _, data = explored(write_finished_run(tmp_path / "mine", videos=3, failures=3, methods=("zar",)))
    (case,) = data["cases"]
    assert case["before"] == case["after"] == [-1] * 3


@pytest.mark.parametrize(
    ("report", "there"),
    [
        ("/runs/mine/report.html", "/runs/mine/explorer.html"),
        ("/pages/mine.html", "/pages/mine-explorer.html"),
        ("s3://bucket/runs/report.html", "s3://bucket/runs/explorer.html"),
    ],
)
def test_it_lies_beside_its_report(report, there):
    assert explorer_of(report) == there


def test_the_script_is_no_template(tmp_path):
    script = (Path(explorer.__file__).parent / "templates" / "explorer.js").read_text(encoding="utf-8")
    assert not re.search(r"\{\{|\{%|\{#|</script|<!--", script)
