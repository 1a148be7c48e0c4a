"""The report of a real run, as a browser shows it: whole, from one file alone, and without a complaint."""

from __future__ import annotations

import re

import pytest

from zar_ray.commands.main import main

pytestmark = pytest.mark.slow

SAMPLES = 2


@pytest.fixture(scope="module")
def report(browser_path, finished_run, tmp_path_factory):
    """The file that `zar report run` wrote of an evaluation, away from the run: nothing beside it may be needed."""
    target = tmp_path_factory.mktemp("elsewhere") / "report.html"
    command = ["report", "run", str(finished_run), "--output", str(target), "--samples", str(SAMPLES)]
    assert main(command) == 0
    return target


@pytest.fixture
def opened(report, watch):
    watched = watch(report.parent.as_uri())
    watched.page.goto(report.as_uri())
    watched.page.wait_for_load_state("networkidle")
    return watched


def test_it_asks_for_nothing_and_reports_no_error(opened):
    page = opened.page
    page.keyboard.press("End")
    for folded in page.locator("summary").all():
        folded.click()
    assert opened.errors == []
    assert opened.asked == []
    assert "shown" in page.get_by_role("heading", level=1).inner_text()


def test_every_section_is_listed_and_holds_something(opened):
    page = opened.page
    sections = page.locator("main section").all()
    titles = [section.get_by_role("heading", level=3).inner_text() for section in sections]
    assert len(set(titles)) >= 12
    assert page.locator("nav li").all_inner_texts() == titles
    for title, section, link in zip(titles, sections, page.locator("nav a").all(), strict=True):
        said = section.inner_text().removeprefix(title).strip()
        assert said or section.locator("img").count(), f"{title} is empty"
        link.click()
        assert section.bounding_box()["height"] > 40, f"{title} takes no room"


def test_every_picture_is_drawn_and_described(opened):
    pictures = opened.page.locator("img").all()
    assert len(pictures) > 5
    for picture in pictures:
        alt = picture.get_attribute("alt")
        assert alt
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("one => one.decode().then(() => one.naturalWidth * one.naturalHeight)") > 0, alt


def test_attention_maps_of_the_run_s_videos_are_in_it(opened):
    section = opened.page.locator("main section").filter(has_text="Where the model looks")
    assert section.locator("img").count() == SAMPLES
    assert section.get_by_text("The rollout belongs to the image tower").count() == SAMPLES


@pytest.mark.parametrize("width", [1500, 420])
def test_the_page_fits_the_window(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 900})
    page, window = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert page <= window


def test_a_page_that_asks_or_throws_would_be_noticed(watch, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/a.png"><link rel="stylesheet" href="b.css"><script>nothing()</script>')
    watched = watch(bad.as_uri())
    watched.page.goto(bad.as_uri())
    watched.page.wait_for_load_state("networkidle")
    assert sorted(watched.asked) == [(tmp_path / "b.css").as_uri(), "http://127.0.0.1:9/a.png"]
    assert any("nothing is not defined" in error for error in watched.errors)


def test_it_is_dark_where_that_is_preferred_but_not_on_paper(opened):
    page = opened.page
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert max(map(int, re.findall(r"\d+", page.evaluate(ground)))) < 60
    turned = page.locator("figure img").evaluate_all(
        "all => all.map(one => [one.src.slice(5, 14), getComputedStyle(one).filter !== 'none'])"
    )
    # Charts turn around, pictures of videos do not.
    assert {(kind, dark) for kind, dark in turned} == {("image/svg", True), ("image/png", False)}
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_the_explorer_beside_it_has_the_same_videos_and_leads_back(opened):
    page = opened.page
    page.get_by_role("link", name="All videos in a table").click()
    page.wait_for_url("**/explorer.html")
    assert page.locator("#rows tr").count() > 5
    assert page.locator("#rows img.thumb").count() > 0
    page.get_by_role("link", name="the report").click()
    page.wait_for_url("**/report.html")
    assert opened.errors == []
