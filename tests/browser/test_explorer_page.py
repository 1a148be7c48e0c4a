"""The Explorer of 14,000 videos, as a browser shows it: at once, by pointer and by keyboard, dark and on paper."""

from __future__ import annotations

import os
import re
from pathlib import Path

import av
import numpy as np
import pytest
from finished_runs import write_finished_run
from many_videos import write_many_videos
from PIL import Image

from zar_ray.reporting.explorer import explorer_of, render_explorer
from zar_ray.reporting.pages import Card, Cards, Group, Page, Picture, Section
from zar_ray.reporting.run_data import StudyData

pytestmark = pytest.mark.slow

VIDEOS, CLASSES = 14_000, tuple(f"action {number:03}" for number in range(400))
SECONDS = 2.0
DOCS = Path(__file__).parents[2] / "docs"
SHOWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def write_webm(path: Path) -> Path:
    """A second of VP9, which every browser plays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sampled(video_id: str) -> Page:
    """A report that has pictures of a video."""
    colours = ("#0072b2", "#d55e00")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="90"><rect width="99" height="90" fill="{}"/></svg>'
    )
    pictures = [Picture.of(svg.format(one).encode(), "image/svg+xml", video_id) for one in colours]
    cards = Cards("Most helped", [Card(video_id, "", pictures)])
    return Page("k400_zar_seed0", "demo", None, (), (), [Group("zar", [Section("Videos", [cards])])])


@pytest.fixture(scope="module")
def place(browser_path, tmp_path_factory) -> Path:
    """A page beside the folder of its videos, of which one is there."""
    root = tmp_path_factory.mktemp("explorer")
    run = write_many_videos(root / "run", VIDEOS, CLASSES, root=root / "my videos")
    write_webm(root / "my videos" / "c000" / "video 00002.webm")
    report = str(run / "report.html")
    page = render_explorer(StudyData.read(str(run)), sampled("c000/video 00002.webm"), report)
    Path(explorer_of(report)).write_text(page, encoding="utf-8")
    return Path(explorer_of(report))


@pytest.fixture
def opened(place, watch):
    watched = watch(place.parents[1].as_uri())
    watched.page.goto(place.as_uri())
    yield watched
    assert watched.errors == []
    assert watched.asked == []


def count(page) -> int:
    return int(page.locator("#count").inner_text().split(" ")[0].replace(",", ""))


def ids(page) -> list[str]:
    return page.locator("#rows td.id").all_inner_texts()


def test_it_opens_in_two_seconds_with_the_rows_in_sight_alone(place, watch):
    watched = watch(place.as_uri())
    took = []
    for _ in range(3):
        watched.page.goto(place.as_uri())
        took.append(watched.page.evaluate(SHOWN) / 1000)
    print(f"{VIDEOS} videos, {place.stat().st_size / 1e6:.2f} MB, shown after {', '.join(f'{s:.2f}' for s in took)} s")
    assert count(watched.page) == VIDEOS
    assert watched.page.locator("#grid").get_attribute("aria-rowcount") == str(VIDEOS + 1)
    assert 10 < watched.page.locator("#rows tr").count() < 100
    # The best of three: other work on the machine is not the page's.
    assert min(took) < SECONDS


def test_it_filters_by_kind_class_confidence_and_words(opened):
    page = opened.page
    counts = {}
    for button in page.locator("#show button").all():
        kind, number = button.inner_text().split(" ")
        button.click()
        counts[kind] = count(page)
        assert counts[kind] == int(number.replace(",", ""))
        assert button.get_attribute("aria-pressed") == "true"
    assert counts["failed"] == 20
    assert counts["warned"] == 28
    assert counts["helped"] + counts["hurt"] <= counts["changed"] < counts["wrong"]
    page.locator("#show button", has_text="hurt").click()
    for row in page.locator("#rows tr").all()[:5]:
        cells = row.locator("td").all_inner_texts()
        assert cells[1] == cells[2] != cells[3]
    page.get_by_role("button", name="Show all").click()
    assert count(page) == VIDEOS
    page.get_by_label("right class").select_option("action 007")
    assert count(page) == 35
    page.get_by_label("predicted class").select_option("action 007")
    assert 10 < count(page) < 35
    page.keyboard.press("Escape")
    page.get_by_label("confidence from").fill("99.5")
    shown = page.locator("#rows td.confidence_after").all_inner_texts()
    assert 0 < count(page) < VIDEOS / 10
    assert all(float(one) >= 99.5 for one in shown)
    page.get_by_label("to, %").fill("10")
    assert count(page) == 0
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("search").fill("13999 ACTION")
    assert ids(page) == ["c399/video 13999.webm"]


def test_it_sorts_by_every_column_both_ways_and_unknown_comes_last(opened):
    page = opened.page
    for head in page.locator("thead th").all()[1:]:
        column = head.get_attribute("data-column")
        for way in ("ascending", "descending"):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == way
            assert page.locator("th:not([aria-sort=none])").count() == 1
            shown = page.locator(f"#rows td.{column}").all_inner_texts()[:12]
            assert all(shown), f"{column}: nothing known comes first"
            if column not in ("flags", "reason"):
                key = float if re.match("conf|entr", column) else str
                values = [key(one) for one in shown]
                assert values == sorted(values, reverse=way == "descending")
            page.locator("#box").evaluate("one => { one.scrollTop = 0; }")
    page.locator("th[data-column=confidence_after] button").click()
    page.locator("#grid").press("End")
    assert page.locator("#rows tr").last.locator(".confidence_after").inner_text() == ""


def test_the_keyboard_is_enough(opened):
    from playwright.sync_api import expect

    page = opened.page
    page.keyboard.press("/")
    expect(page.get_by_label("search")).to_be_focused()
    page.keyboard.type("c000")
    assert page.get_by_label("search").input_value() == "c000"
    page.keyboard.press("ArrowDown")
    grid = page.locator("#grid")
    expect(grid).to_be_focused()
    assert grid.evaluate("one => getComputedStyle(one).outlineStyle") != "none"
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    chosen = page.locator("#rows tr[aria-selected=true]")
    assert chosen.locator(".id").inner_text() == "c000/video 00002.webm"
    assert grid.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("c000/video 00002.webm")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(grid).to_be_focused()
    assert count(page) == 35, "Escape closed the video and left the filter"
    page.keyboard.press("Escape")
    assert count(page) == VIDEOS
    page.keyboard.press("End")
    expect(chosen.locator(".id")).to_have_text("c399/video 13999.webm")
    expect(chosen).to_be_in_viewport(ratio=1)
    page.keyboard.press("PageUp")
    page.keyboard.press("Home")
    expect(chosen.locator(".id")).to_have_text("c000/video 00000.webm")


def test_a_confusion_filters_by_pointer_keyboard_and_button(opened):
    page = opened.page
    button = page.locator("#confusions button").first
    right, predicted, among = re.fullmatch(r"(.*) → (.*) \((\d+) of \d+\)", button.inner_text()).groups()
    button.click()
    assert count(page) == int(among)
    assert button.get_attribute("aria-pressed") == "true"
    for row in page.locator("#rows tr").all():
        cells = row.locator("td").all_inner_texts()
        assert (cells[1], cells[3]) == (right, predicted)
    page.keyboard.press("Escape")

    # The same cell in the picture, of whose 400 classes each takes a pixel or two.
    canvas = page.locator("#confusion")
    canvas.scroll_into_view_if_needed()
    box, margin = canvas.bounding_box(), page.evaluate("MARGIN")
    at = [margin + (CLASSES.index(one) + 0.5) * (box["width"] - margin) / len(CLASSES) for one in (predicted, right)]
    canvas.click(position={"x": at[0], "y": at[1]})
    assert count(page) == int(among)
    assert page.locator("#readout").inner_text().startswith(f"{right} → {predicted}: {among} of ")

    page.keyboard.press("Escape")
    canvas.focus()
    assert canvas.evaluate("one => getComputedStyle(one).outlineStyle") != "none"
    for key in ("+", "+", "ArrowUp", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowRight", "-"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert count(page) == int(among)


def test_a_clip_plays_and_its_pictures_enlarge(opened):
    from playwright.sync_api import expect

    page = opened.page
    page.get_by_label("search").fill("video 00002")
    expect(page.locator("#rows img.thumb")).to_have_count(1)
    page.locator("#rows tr").first.click()
    film = page.locator("dialog video")
    expect(film).to_be_visible()
    assert film.evaluate("async one => { one.muted = true; await one.play(); return one.duration; }") > 0.9
    page.wait_for_function("document.querySelector('dialog video').currentTime > 0")
    assert film.evaluate("one => [one.videoWidth, one.videoHeight]") == [64, 48]
    picture = page.locator("dialog .strip button").first
    small = picture.bounding_box()["width"]
    picture.click()
    assert picture.bounding_box()["width"] > 2 * small
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("dialog")).to_be_hidden()


def test_a_clip_that_is_gone_is_said(place, watch):
    from playwright.sync_api import expect

    watched = watch(place.parents[1].as_uri())
    watched.page.goto(place.as_uri())
    watched.page.locator("#rows tr").nth(1).click()
    expect(
        watched.page.get_by_text("Not to be played here: there is no ../my videos/c000/video 00001.webm")
    ).to_be_visible()
    assert all("ERR_FILE_NOT_FOUND" in error for error in watched.errors)


def test_what_is_put_into_the_page_runs_nothing_and_reaches_nothing(place, watch):
    watched = watch(place.as_uri())
    watched.page.goto(place.as_uri())
    watched.page.evaluate("""() => {
      for (const text of ["window.broken = 1", "//"]) {
        document.body.append(Object.assign(document.createElement("script"), { textContent: text }));
      }
      document.body.append(Object.assign(document.createElement("img"), { src: "file:///elsewhere.png" }));
      document.body.insertAdjacentHTML("beforeend",
        "<p id=p style='position: fixed'>x</p><video src='http://127.0.0.1:9/a.mp4'></video>");
    }""")
    assert watched.page.evaluate("window.broken") is None
    assert watched.page.locator("#p").evaluate("one => getComputedStyle(one).position") == "static"
    watched.page.wait_for_load_state("networkidle")
    assert watched.asked == []
    assert sum("Content Security Policy" in error for error in watched.errors) >= 4


@pytest.mark.parametrize(
    ("made", "counts"),
    [
        ({"multi_label": True, "failures": 2}, {"all": 12, "wrong": 0, "failed": 2}),
        ({"labelled": False}, {"all": 12, "wrong": 0, "helped": 0, "failed": 2}),
        ({"failures": 12}, {"all": 12, "wrong": 0, "changed": 0, "failed": 12}),
        ({"classes": ("</script><b>", "\u2028'\"`${1}", "<!-- <script>")}, {"all": 12, "failed": 2}),
    ],
)
def test_runs_of_all_kinds_are_shown(watch, tmp_path, made, counts):
    run = write_finished_run(tmp_path / "run", videos=12, **made)
    report = str(run / "report.html")
    page = render_explorer(StudyData.read(str(run)), sampled("v03.mp4"), report)
    Path(explorer_of(report)).write_text(page, encoding="utf-8")
    watched = watch(run.as_uri())
    page = watched.page
    page.goto(Path(explorer_of(report)).as_uri())
    chooser = page.get_by_label("method and cell")
    assert chooser.locator("option").all_inner_texts() == ["zero_shot", "zar"]
    chooser.select_option("zar")
    shown = dict(one.split(" ") for one in page.locator("#show button").all_inner_texts())
    assert {kind: int(shown[kind]) for kind in counts} == counts
    for head in page.locator("thead th button").all():
        head.click()
    assert count(page) == page.locator("#rows tr").count() == 12
    confused = counts["failed"] < 12 and not {"multi_label", "labelled"} & set(made)
    assert page.locator("#confusion").is_visible() == confused
    assert page.get_by_text("No video here was decided about").is_visible() == (not confused)
    if "classes" in made:
        offered = page.get_by_label("right class").locator("option").evaluate_all("all => all.map(one => one.text)")
        assert {"</script><b>", "<!-- <script>"} < set(offered)
    assert watched.errors == watched.asked == []


@pytest.mark.parametrize("width", [1500, 420])
def test_the_page_fits_the_window(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 900})
    page, window = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert page <= window


def test_it_is_dark_where_that_is_preferred_and_black_on_white_on_paper(opened, tmp_path):
    page = opened.page
    page.set_viewport_size({"width": 1280, "height": 800})
    grounds = {}
    for name, media in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "print": {"media": "print"},
    }.items():
        page.emulate_media(**media)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('#count')).color")
        grounds[name] = [sum(map(int, re.findall(r"\d+", one)[:3])) // 3 for one in (ground, ink)]
        if name != "light" and os.environ.get("ZAR_SCREENSHOTS"):
            picture = DOCS / f"explorer-{name}.png"
            page.screenshot(path=picture)
            with Image.open(picture) as drawn:
                drawn.convert("RGB").quantize(64).save(picture, optimize=True)
            assert picture.stat().st_size < 150_000
    assert grounds["light"][0] == grounds["print"][0] == 255
    assert grounds["dark"][0] < 60
    assert all(abs(ground - ink) > 150 for ground, ink in grounds.values())
    assert page.locator(".controls").first.is_hidden()
    assert page.locator("#rows tr").count() == page.evaluate("PRINTED")
    assert page.get_by_text(f"The first {page.evaluate('PRINTED')} of 14,000 videos.").is_visible()
    paper = Path(tmp_path / "page.pdf")
    page.pdf(path=paper)
    assert paper.read_bytes().startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type /Page\b", paper.read_bytes())) < 30
