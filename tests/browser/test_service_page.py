"""The service's page as a browser runs it: the real application with its policy, canned answers behind it."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from pathlib import Path

import pytest
from page_service import FRAMES, MODEL, PROMISED_WAIT, SECONDS, SELECTED, FakeBackend, drawn_clip, running_service

pytestmark = pytest.mark.slow

LABELS = ("playing basketball", "lifting weights", "walking a dog", "shooting an arrow", "riding a bicycle", "juggling")
TOP = 5
TOKEN = "a-token-of-nine-words"
# The machine may do other things besides.
PATIENCE = 30_000
# A failed request, which Chromium logs whatever the page does about it.
REFUSED = "Failed to load resource"
SCREENSHOT = Path(__file__).parents[2] / "docs" / "service-page.png"


@pytest.fixture(scope="module", autouse=True)
def patience():
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    yield
    expect.set_options(timeout=None)


@pytest.fixture(scope="module")
def backend():
    return FakeBackend()


@pytest.fixture(scope="module")
def samples(tmp_path_factory, make_video) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for number, name in enumerate(("dribbling", "weights")):
        make_video(folder / f"{name}.mp4", seed=number)
    return folder


@pytest.fixture(scope="module")
def clip(samples) -> bytes:
    return (samples / "dribbling.mp4").read_bytes()


@pytest.fixture(scope="module")
def service(browser_path, backend, samples):
    with running_service(backend, samples=samples, label_sets={"sports": "archery,fencing,judo"}) as url:
        yield url


@pytest.fixture
def opened(service, watch):
    watched = watch(service, reduced_motion="reduce")
    watched.page.set_default_timeout(PATIENCE)
    watched.page.goto(service)
    watched.page.wait_for_load_state("networkidle")
    return watched


def choose(page, clip: bytes, name: str = "dunk.mp4") -> None:
    page.get_by_label("Choose a video").set_input_files({"name": name, "mimeType": "video/mp4", "buffer": clip})


def fill(page, clip: bytes, name: str = "dunk.mp4") -> None:
    choose(page, clip, name)
    page.get_by_label("Your labels").fill("\n".join(LABELS))


def classify(page) -> None:
    page.get_by_role("button", name="Classify").click()


def scores(page) -> list[list[str]]:
    table = page.get_by_role("table", name="Labels with their scores")
    rows = table.locator("tbody tr").all()
    return [[re.sub(r"\s+", " ", cell).strip() for cell in row.locator("th, td").all_inner_texts()] for row in rows]


def assert_clean(watched) -> None:
    assert watched.errors == []
    assert watched.asked == []


def test_an_uploaded_video_is_classified_and_all_about_it_shown(opened, clip, backend):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip)
    classify(page)
    heading = page.get_by_role("heading", level=2)
    expect(heading).to_be_focused()
    video, query, _ = backend.asked[-1]
    assert video.source.tobytes() == clip
    assert (video.name, query.labels, query.top_k, query.explain) == ("dunk.mp4", LABELS, TOP, True)

    rows = scores(page)
    assert len(rows) >= TOP
    assert {row[0] for row in rows} <= set(LABELS)
    assert all(re.fullmatch(r"\d+\.\d %|lower", row[1]) for row in rows)
    assert all(re.fullmatch(r"\d+\.\d % [+−±]\d+\.\d|lower|\d+\.\d %", row[2]) for row in rows)
    assert rows[0][0] in heading.inner_text()
    after = [float(row[2].split()[0]) for row in rows if row[2] != "lower"]
    assert after == sorted(after, reverse=True)
    assert any(row[1].split()[0] != row[2].split()[0] for row in rows)
    # The bars are drawn: the policy lets scripts set widths, and the longest is the highest score.
    widths = page.locator(".scores .fill").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)")
    assert max(widths) > 100 > min(widths) > 0
    tracks = page.locator(".scores .bar").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)")
    assert max(tracks) - min(tracks) < 0.5, "the same score has two lengths"

    chart = page.get_by_role("img", name=f"{SELECTED} of 48 views were selected")
    assert chart.locator("circle.selected").count() == SELECTED
    assert chart.locator("circle.left-out").count() == 48 - SELECTED
    assert chart.get_by_text("12.5 % of the video").count() == 1
    page.get_by_text("The views as a table").click()
    table = page.get_by_role("table", name="Views with their entropy")
    assert table.get_by_role("cell", name="yes", exact=True).count() == SELECTED
    assert table.get_by_role("row").count() == 49

    expect(page.get_by_text(f"16 of the video’s {FRAMES} frames")).to_be_visible()
    expect(page.get_by_role("row", name="Total 900 ms")).to_be_visible()
    expect(page.get_by_text(MODEL, exact=True)).to_be_visible()
    expect(page.get_by_text(query.request_id)).to_be_visible()
    expect(page.locator("#random")).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text(f"The answer is {rows[0][0]}")
    assert_clean(opened)


def test_several_videos_become_a_table_and_a_csv(opened, clip, backend, tmp_path):
    from playwright.sync_api import expect

    page, asked = opened.page, len(backend.asked)
    names = ["=a, b.mp4", "broken.mp4", *(f"{number}.mp4" for number in range(6))]
    chosen = [{"name": name, "mimeType": "video/mp4", "buffer": clip} for name in names]
    page.get_by_label("Choose a video").set_input_files(chosen)
    expect(page.get_by_text("8 videos, ")).to_be_visible()
    page.get_by_label("Your labels").fill("\n".join(("-jumping", "riding", "swimming")))
    page.get_by_label("Window by window").check()
    classify(page)
    expect(page.get_by_text("One video, please")).to_be_visible()
    page.get_by_label("Window by window").uncheck()
    classify(page)
    expect(page.get_by_role("heading", name="8 of 8 videos, 1 failed")).to_be_focused()
    assert sorted(video.name for video, *_ in backend.asked[asked:]) == sorted(names)
    assert not any(query.explain for _, query, _ in backend.asked[asked:])
    rows = page.get_by_role("table", name="Videos with their labels").locator("tbody tr")
    shown = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [row[0] for row in shown] == names
    assert "no frame of it can be decoded" in shown[1][1]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "found.csv")
    lines = list(csv.DictReader((tmp_path / "found.csv").open(newline="", encoding="utf-8")))
    assert [one["video"] for one in lines] == [f"'{names[0]}", *names[1:]]
    assert {one[f"label_{rank}"] for one in lines[2:] for rank in (1, 2, 3)} == {"'-jumping", "riding", "swimming"}
    assert [one["label_1"].lstrip("'") for one in lines if not one["error"]] == [
        row[1] for row in shown if "Failed" not in row[1]
    ]
    assert [number for number, one in enumerate(lines) if one["error"]] == [1]
    rows.first.get_by_role("button").click()
    expect(page.locator(".answer h2")).to_be_focused()
    expect(page.locator(".answer h2")).to_contain_text(names[0])
    assert opened.asked == []
    assert all(error.startswith(REFUSED) for error in opened.errors)


def test_relevance_differs_before_and_after_and_fades_with_the_slider(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip)
    classify(page)
    frames = page.locator(".frames > li")
    expect(frames).to_have_count(8)
    drawn = page.locator(".frames canvas").evaluate_all("all => all.map((one) => one.toDataURL())")
    assert all(before != after for before, after in zip(drawn[::2], drawn[1::2], strict=True))
    # Viridis ends in yellow: the strongest patch of all has much red and green, and little blue.
    loudest = """all => all.map((one) => {
        const data = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
        return Math.max(...Array.from({length: data.length / 4}, (_, at) => data[4 * at] - data[4 * at + 2]));
    })"""
    assert max(page.locator(".frames canvas").evaluate_all(loudest)) > 100
    sizes = page.locator(".frames .layers").evaluate_all(
        """all => all.map((one) => [...one.children].map((child) => JSON.stringify(child.getBoundingClientRect())))"""
    )
    assert all(picture == canvas for picture, canvas in sizes), "an overlay does not lie on its frame"
    alt = frames.first.get_by_role("img").last.get_attribute("alt")
    assert re.fullmatch(r"Frame \d+, relevance after: strongest \(0\.\d\d\) at the middle centre\.", alt), alt

    opacity = "one => Number(getComputedStyle(one).opacity)"
    slider, canvas = page.get_by_label("Opacity"), page.locator(".frames canvas").first
    assert canvas.evaluate(opacity) == pytest.approx(0.6)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert canvas.evaluate(opacity) == pytest.approx(0.65)
    expect(page.locator(".slider .value")).to_have_text("65 %")
    page.get_by_label("Overlay").uncheck()
    assert canvas.evaluate(opacity) == 0
    expect(slider).to_be_disabled()
    assert_clean(opened)


def test_a_model_without_maps_and_a_method_without_tuning_are_shown_as_such(opened, clip, backend):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "plain.mp4")
    page.get_by_text("More options").click()
    page.get_by_label("Method").select_option("zero_shot")
    page.get_by_label("Prompt").fill("a clip of {}")
    page.get_by_label("Seed of the views").fill("7")
    page.get_by_label("Labels to show").fill("2")
    page.get_by_label("None of these below").fill("1")
    classify(page)
    expect(page.get_by_text("too unsure")).to_be_visible()
    expect(page.get_by_text("the model has no attention maps")).to_be_visible()
    assert [len(row) for row in scores(page)] == [2, 2]
    assert page.get_by_text("Entropy of the views").count() == 0
    _, query, _ = backend.asked[-1]
    assert (query.method, query.seed, query.template) == ("zero_shot", 7, "a clip of {}")
    assert_clean(opened)


def test_several_seeds_are_asked_for_and_their_spread_is_shown(opened, clip, backend):
    from playwright.sync_api import expect

    page, sent = opened.page, len(backend.asked)
    fill(page, clip, "a.mp4")
    classify(page)
    expect(page.get_by_text("drawn by the file’s name and the seed (0)")).to_be_visible()
    page.get_by_text("More options").click()
    page.get_by_label("Seed of the views").fill("4, x")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_text("Whole numbers, please")).to_be_visible()
    page.get_by_label("Seed of the views").fill("4, 0 9")
    classify(page)
    expect(page.get_by_text("Means ± standard deviations over the seeds 4, 0, 9.")).to_be_visible()
    assert "±" in page.locator(".answer strong").inner_text()
    assert [query.seed for _, query, _ in backend.asked[sent + 1 :]] == [4, 0, 9]
    page.get_by_label("Window by window").check()
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_text("One seed, please: windows take no more.")).to_be_visible()
    assert_clean(opened)


def test_a_methods_own_options_are_learnt_from_the_service(opened, clip, backend):
    from playwright.sync_api import expect

    page, sent = opened.page, len(backend.asked)
    fill(page, clip, "a.mp4")
    page.get_by_text("More options").click()
    page.get_by_text("Options of zar").click()
    expect(page.get_by_text("AdamW steps a video.")).to_be_visible()
    steps = page.get_by_label("steps", exact=True)
    expect(steps).to_have_attribute("placeholder", "1")
    steps.fill("11")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_text("Between 1 and 10, please.")).to_be_visible()
    assert len(backend.asked) == sent
    steps.fill("3")
    page.get_by_label("betas").fill("0.5, 0.9")
    page.get_by_label("loss").select_option("mean_entropy")
    classify(page)
    expect(page.get_by_text("Entropy of the views")).to_be_visible()
    _, query, _ = backend.asked[-1]
    assert (query.method, query.options) == ("zar", {"steps": 3, "betas": [0.5, 0.9], "loss": "mean_entropy"})
    page.get_by_label("Method").select_option("zero_shot")
    expect(page.get_by_text("Options of zar")).to_be_hidden()
    classify(page)
    expect(page.get_by_text("Entropy of the views")).to_have_count(0)
    expect(page.get_by_role("table", name="Labels with their scores")).to_be_visible()
    assert (backend.asked[-1][1].method, backend.asked[-1][1].options) == ("zero_shot", {})
    assert_clean(opened)


def test_a_sample_and_a_label_set_are_picked(opened, backend, samples):
    from playwright.sync_api import expect

    page = opened.page
    page.get_by_label("or take a sample").select_option("weights")
    page.get_by_label("Choose among").select_option("sports")
    expect(page.get_by_label("Your labels")).to_be_hidden()
    expect(page.get_by_text("archery, fencing, judo")).to_be_visible()
    classify(page)
    expect(page.get_by_role("heading", level=2)).to_contain_text("weights")
    video, query, _ = backend.asked[-1]
    assert video.source == str(samples / "weights.mp4")
    assert query.labels == ("archery", "fencing", "judo")

    page.get_by_role("button", name="Edit these labels").click()
    expect(page.get_by_label("Your labels")).to_have_value("archery\nfencing\njudo")
    expect(page.get_by_label("Your labels")).to_be_focused()
    assert_clean(opened)


def test_a_chosen_file_replaces_the_sample_and_the_other_way_round(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    sample, video = page.get_by_label("or take a sample"), page.get_by_label("Choose a video")
    sample.select_option("weights")
    choose(page, clip)
    expect(sample).to_have_value("")
    expect(page.get_by_label("Preview of the chosen video")).to_be_visible()
    sample.select_option("weights")
    assert video.evaluate("one => one.files.length") == 0
    expect(page.get_by_label("Preview of the chosen video")).to_be_hidden()
    assert_clean(opened)


def test_a_dropped_file_is_chosen(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    page.evaluate(
        """(data) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], "dropped.mp4", {type: "video/mp4"}));
            document.querySelector("#drop").dispatchEvent(
                new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(clip),
    )
    expect(page.get_by_label("Choose a video")).to_have_value(re.compile("dropped.mp4"))
    expect(page.get_by_label("Preview of the chosen video")).to_be_visible()
    assert_clean(opened)


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("archery, judo,fencing,", ["archery", "judo", "fencing"]),
        ("  archery \n\njudo\narchery\n", ["archery", "judo"]),
        ("high jump, indoors,\nlong jump, outdoors", ["high jump, indoors", "long jump, outdoors"]),
        ('"a,b",c', ["a,b", "c"]),
        ('"say ""hi"", twice" , judo', ['say "hi", twice', "judo"]),
        ('"archery, indoors"', ["archery, indoors"]),
    ],
)
def test_labels_are_read_a_line_each_or_between_commas(opened, clip, backend, typed, labels):
    from playwright.sync_api import expect

    page = opened.page
    choose(page, clip)
    page.get_by_label("Your labels").fill(typed)
    expect(page.locator("#labels-hint")).to_have_text(f"{len(labels)} label{'s' * (len(labels) > 1)}.")
    classify(page)
    expect(page.get_by_role("heading", level=2)).to_be_focused()
    assert list(backend.asked[-1][1].labels) == labels


def test_an_error_says_what_happened_and_what_to_do(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "broken.mp4")
    classify(page)
    problem = page.get_by_role("alert")
    expect(problem.get_by_role("heading", name="The video cannot be used")).to_be_focused()
    expect(problem).to_contain_text("broken.mp4: no frame of it can be decoded (moov atom not found)")
    expect(problem).to_contain_text("What to do: Check that the file plays")
    assert re.search(r"422 unusable-video · request [0-9a-f]{32}", problem.inner_text())
    assert all(error.startswith(REFUSED) for error in opened.errors)
    # And all goes on from there.
    choose(page, clip)
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_be_visible()
    expect(problem).to_be_empty()


def test_an_overloaded_service_says_when_to_come_back(opened, clip):
    from playwright.sync_api import expect

    fill(opened.page, clip, "busy.mp4")
    classify(opened.page)
    expect(opened.page.get_by_role("alert")).to_contain_text(f"The service suggests to wait {PROMISED_WAIT} s.")
    # What is said of the form next stands alone.
    opened.page.get_by_label("Your labels").fill("")
    classify(opened.page)
    expect(opened.page.locator("#labels-error")).to_be_visible()
    expect(opened.page.get_by_role("alert")).to_be_empty()


def test_a_connection_that_fails_is_told(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    page.route("**/v1/classify", lambda route: route.abort())
    fill(page, clip)
    classify(page)
    expect(page.get_by_role("alert")).to_contain_text("The service could not be reached")


def test_a_proxy_s_error_page_is_told(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    page.route("**/v1/classify", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    fill(page, clip)
    classify(page)
    expect(page.get_by_role("alert")).to_contain_text("The answer was HTTP 502")


def test_foreign_text_stays_text(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    choose(page, clip, "<img src=x onerror=alert(1)>.mp4")
    page.get_by_label("Your labels").fill("<b>bold</b>\n<script>alert(1)</script>")
    classify(page)
    expect(page.get_by_role("heading", level=2)).to_contain_text("<")
    assert {row[0] for row in scores(page)} == {"<b>bold</b>", "<script>alert(1)</script>"}
    assert page.locator("#output b, #output script, #output img[src=x]").count() == 0
    assert_clean(opened)


def test_a_label_that_is_written_from_right_to_left_turns_nothing_else_round(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    choose(page, clip)
    page.get_by_label("Your labels").fill("\u05e8\u05d9\u05e6\u05d4\n\u05e7\u05e4\u05d9\u05e6\u05d4")
    classify(page)
    expect(page.get_by_role("heading", level=2)).to_be_focused()
    for label in page.locator("#output").get_by_text(re.compile("[\u05d0-\u05ea]")).all():
        inside_bdi = label.evaluate("node => node.closest('bdi') !== null")
        assert inside_bdi, label.evaluate("node => node.outerHTML")
    assert page.locator("#output bdi").count() >= 4
    assert_clean(opened)


def test_mistakes_are_told_beside_their_fields_before_anything_is_sent(opened, clip, backend):
    from playwright.sync_api import expect

    page, sent = opened.page, len(backend.asked)
    classify(page)
    video, labels = page.get_by_label("Choose a video"), page.get_by_label("Your labels")
    expect(video).to_be_focused()
    expect(video).to_have_attribute("aria-invalid", "true")
    expect(video).to_have_accessible_description(re.compile("Choose a video, or a sample"))
    expect(labels).to_have_accessible_description(re.compile("Type some labels"))
    fill(page, clip)
    page.get_by_text("More options").click()
    page.get_by_label("Prompt").fill("no place for a label")
    page.get_by_text("More options").click()
    classify(page)
    expect(page.get_by_label("Prompt")).to_be_focused()
    expect(page.get_by_label("Prompt")).to_have_accessible_description(re.compile("Put {} where the label goes"))
    expect(video).not_to_have_attribute("aria-invalid", "true")
    assert len(backend.asked) == sent
    assert_clean(opened)


def test_a_run_shows_its_time_and_can_be_aborted(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "endless.mp4")
    classify(page)
    abort = page.get_by_role("button", name="Abort")
    expect(abort).to_be_focused()
    expect(page.get_by_role("status")).to_have_text("Classifying.")
    expect(page.locator("#elapsed")).to_have_text(re.compile(r"^(0\.[3-9]|[1-9]).* s$"))
    expect(page.get_by_role("button", name="Classify")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Classify")).to_be_focused()
    expect(page.get_by_role("status")).to_have_text("Aborted.")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    fill(page, clip)
    classify(page)
    expect(page.locator(".answer")).to_be_visible()
    assert_clean(opened)


def test_windows_appear_one_by_one_and_open(opened, clip, backend):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "long.mp4")
    page.get_by_label("Window by window").check()
    page.get_by_label("Window, seconds").fill("20")
    page.get_by_label("Stride, seconds").fill("10")
    classify(page)
    rows = page.locator(".windows button")
    expect(rows).to_have_count(5)
    expect(page.get_by_text("5 windows. Choose one to see all about it.")).to_be_visible()
    _, _, windows = backend.asked[-1]
    assert (windows.window, windows.stride) == (20.0, 10.0)
    said = [" ".join(row.inner_text().split()) for row in rows.all()]
    assert [row.split()[0] for row in said] == ["0:00–0:20", "0:10–0:30", "0:20–0:40", "0:30–0:47", "0:40–0:47"]
    assert all(re.search(rf" ({'|'.join(LABELS)}) \d+\.\d % → \d+\.\d %$", row) for row in said), said
    places = page.locator(".windows .place").evaluate_all("all => all.map((one) => one.getBoundingClientRect().left)")
    assert places == sorted(places)
    assert places[0] < places[-1] - 100
    rows.nth(1).press("Enter")
    detail = page.locator(".answer").get_by_role("heading", level=2)
    expect(detail).to_be_focused()
    expect(detail).to_contain_text("Window 0:10–0:30")
    expect(page.get_by_text("25 % of the window").first).to_be_visible()
    expect(rows.nth(1)).to_have_attribute("aria-pressed", "true")
    assert SECONDS == 47.0
    assert_clean(opened)


def test_windows_of_a_sample_work_too(opened, backend, samples):
    from playwright.sync_api import expect

    page = opened.page
    page.get_by_label("or take a sample").select_option("dribbling")
    page.get_by_label("Your labels").fill("archery, judo")
    page.get_by_label("Window by window").check()
    classify(page)
    expect(page.locator(".windows button")).to_have_count(5)
    video, _, windows = backend.asked[-1]
    assert (video.source, windows.window, windows.stride) == (str(samples / "dribbling.mp4"), 10.0, None)
    assert_clean(opened)


def test_a_stream_that_fails_keeps_its_windows(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "breaks-later.mp4")
    page.get_by_label("Window by window").check()
    classify(page)
    expect(page.get_by_role("alert")).to_contain_text("The request took too long")
    expect(page.locator(".windows button")).to_have_count(2)
    expect(page.get_by_text("2 windows, then the service stopped.")).to_be_visible()
    assert_clean(opened)


def test_a_stream_can_be_aborted_and_keeps_its_windows(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    fill(page, clip, "endless.mp4")
    page.get_by_label("Window by window").check()
    classify(page)
    expect(page.locator(".windows button")).to_have_count(2)
    page.get_by_role("button", name="Abort").click()
    expect(page.get_by_text("2 windows, then aborted.")).to_be_visible()
    expect(page.get_by_role("button", name="Classify")).to_be_focused()
    assert_clean(opened)


def test_a_stream_is_read_whatever_its_chunks(opened, clip):
    """Line ends of both kinds, comments, data over several lines, breaks within characters, and no end event."""
    parsed = opened.page.evaluate(
        """async () => {
            const { events } = await import("./page/stream.js");
            const text = ': hi\\r\\nevent: window\\r\\ndata: {"label":\\r\\ndata: "Ü—🏀"}\\r\\n\\r\\n'
                + 'data: 1\\n\\nevent: lost\\n';
            const bytes = new TextEncoder().encode(text);
            const read = async (size) => {
                const body = new ReadableStream({ start(controller) {
                    for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
                    controller.close();
                } });
                const found = [];
                for await (const one of events({ body })) found.push(one);
                return JSON.stringify(found);
            };
            return [await read(1), await read(3), await read(1000)];
        }"""
    )
    expected = '[{"event":"window","data":{"label":"Ü—🏀"}},{"event":"message","data":1}]'
    assert parsed == [expected] * 3


@pytest.fixture
def guarded(browser_path, watch):
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    with running_service(FakeBackend(), tokens=[digest], label_sets={"sports": "archery,judo"}) as url:
        watched = watch(url)
        watched.page.set_default_timeout(PATIENCE)
        watched.page.goto(url)
        watched.page.wait_for_load_state("networkidle")
        yield watched
        # Before the service goes: its end would wait for the page's connections.
        watched.page.close()


def test_a_token_is_asked_for_where_the_service_wants_one(guarded, clip):
    from playwright.sync_api import expect

    page = guarded.page
    token = page.get_by_label("Bearer token")
    expect(token).to_be_visible()
    fill(page, clip)
    classify(page)
    expect(token).to_be_focused()
    expect(token).to_have_accessible_description(re.compile("The service asks for a token"))
    expect(page.get_by_role("alert")).to_contain_text("A valid bearer token is needed")
    token.fill("wrong")
    token.press("Enter")
    expect(token).to_have_accessible_description(re.compile("does not take this token"))
    expect(page.get_by_label("Choose among")).to_be_hidden()
    token.fill(TOKEN)
    page.get_by_role("button", name="Use this token").click()
    expect(page.get_by_label("Choose among")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    classify(page)
    expect(page.locator(".answer")).to_be_visible()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert all(error.startswith(REFUSED) for error in guarded.errors)
    assert guarded.asked == []


def test_random_weights_are_announced(browser_path, watch, clip):
    from playwright.sync_api import expect

    with running_service(FakeBackend(random_weights=True)) as url:
        watched = watch(url)
        page = watched.page
        page.goto(url)
        expect(page.get_by_text("This model has random weights.")).to_be_visible()
        fill(page, clip, "damaged.mp4")
        classify(page)
        expect(page.get_by_text("Random weights: the model was never trained")).to_be_visible()
        expect(page.get_by_text("About the file: 3 frames are damaged and were left out")).to_be_visible()
        page.close()
    assert_clean(watched)


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (320, "dark"), (1280, "light")])
def test_nothing_is_wider_than_the_window(opened, clip, width, scheme):
    from playwright.sync_api import expect

    page = opened.page
    page.set_viewport_size({"width": width, "height": 640})
    page.emulate_media(color_scheme=scheme)

    def fits() -> bool:
        wide, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        return wide <= window

    page.get_by_text("More options").click()
    page.get_by_label("Window by window").check()
    assert fits()
    expect(page.get_by_role("button", name="Classify")).to_be_in_viewport(ratio=1)
    fill(page, clip, "a-name-without-any-space-that-goes-on-for-longer-than-a-telephone-is-wide.mp4")
    classify(page)
    expect(page.locator(".windows button")).to_have_count(5)
    page.locator(".windows button").first.click()
    for summary in page.locator("#output summary").all():
        summary.click()
    assert fits()
    # Charts are drawn for the width they have.
    chart = page.locator("#output svg[role=img]").bounding_box()
    assert chart["x"] >= 0
    assert chart["x"] + chart["width"] <= width
    page.get_by_label("Window by window").uncheck()
    fill(page, clip, f"{'broken' * 20}.mp4")
    classify(page)
    expect(page.get_by_role("alert").get_by_role("heading")).to_be_focused()
    assert fits()


def test_the_keyboard_is_enough(opened, backend):
    """From the address bar to the answer, with Tab, arrows, Space and Enter alone."""
    from playwright.sync_api import expect

    page = opened.page
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    press, order = page.keyboard.press, []

    def tab_to(wanted: str) -> None:
        for _ in range(30):
            press("Tab")
            order.append(page.evaluate(focused))
            shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert shown != "none", f"no visible focus on {order[-1]}"
            if order[-1] == wanted:
                return
        pytest.fail(f"Tab never comes to {wanted}: {order}")

    tab_to("sample")
    assert order == ["Skip to the result", "video", "sample"]
    press("ArrowDown")
    tab_to("labels")
    page.keyboard.type("archery, judo, fencing")
    tab_to("windowed")
    press("Space")
    expect(page.get_by_label("Window by window")).to_be_checked()
    press("Space")
    tab_to("More options")
    press("Enter")
    tab_to("template")
    page.keyboard.type("a video of {}")
    tab_to("classify")
    press("Enter")
    expect(page.get_by_role("heading", level=2)).to_be_focused()
    _, query, _ = backend.asked[-1]
    assert query.labels == ("archery", "judo", "fencing")
    # Onwards from the answer: the next stops are its own controls.
    named = "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
    for stop in ("Their numbers", "Overlay", "Opacity"):
        press("Tab")
        assert page.evaluate(named) == stop
    assert_clean(opened)


def test_every_control_has_a_name(opened, clip):
    from playwright.sync_api import expect

    page = opened.page
    page.get_by_text("More options").click()
    page.get_by_text("Options of zar").click()
    page.get_by_label("Window by window").check()
    fill(page, clip)
    classify(page)
    page.locator(".windows button").first.click()
    expect(page.locator(".frames canvas").first).to_be_visible()
    client = page.context.new_cdp_session(page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    kinds = {
        "textbox", "spinbutton", "combobox", "checkbox", "slider", "button", "link", "image", "table", "region",
        "Video", "DisclosureTriangle", "form", "group", "searchbox", "listbox",
    }  # fmt: skip
    named = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in kinds:
            named.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
    anonymous = {role: names for role, names in named.items() if not all(names) and role != "group"}
    assert not anonymous
    assert len(named["textbox"]) >= 3
    assert len(named["spinbutton"]) == 4 + 5, "five of zar's options are numbers"
    assert {"slider", "combobox", "image", "table", "button"} <= set(named)


def test_waiting_does_not_move_for_those_who_asked_for_calm(opened, clip):
    page = opened.page
    fill(page, clip, "endless.mp4")
    classify(page)
    name = 'getComputedStyle(document.querySelector(".moving"), "::before").animationName'
    assert page.evaluate(name) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(name) == "along"
    page.get_by_role("button", name="Abort").click()
    assert_clean(opened)


@pytest.mark.skipif(
    not os.environ.get("ZAR_SCREENSHOTS"), reason="writes docs/service-page.png if ZAR_SCREENSHOTS is set"
)
def test_the_screenshot_of_the_documentation(opened, tmp_path):
    from PIL import Image
    from playwright.sync_api import expect

    page = opened.page
    page.set_viewport_size({"width": 1200, "height": 1500})
    fill(page, drawn_clip(tmp_path / "clip.mp4").read_bytes(), "shot.mp4")
    classify(page)
    expect(page.locator(".frames canvas")).to_have_count(16)
    # The browser's controls lie over the preview until it is known whether the video has sound.
    page.get_by_label("Preview of the chosen video").evaluate("one => { one.controls = false; }")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=SCREENSHOT)
    with Image.open(SCREENSHOT) as picture:
        picture.convert("RGB").save(SCREENSHOT, optimize=True)
    assert SCREENSHOT.stat().st_size < 250_000
