"""Published numbers are kept as printed, and shown with their commands and errata in every form."""

from __future__ import annotations

import csv
import io
import re

import pytest
from published_runs import TABLES, reported
from rich.console import Console
from shipped import shipped_systems

from zar_ray.errors import ConfigError
from zar_ray.reporting.blocks import show
from zar_ray.reporting.published.matching import fill_command
from zar_ray.reporting.published.tables import known_tables, load_table, read_table
from zar_ray.reporting.published.view import compare, table_blocks
from zar_ray.results.study_record import find_runs


def test_every_table_is_there():
    assert known_tables() == TABLES


def test_every_published_number_is_kept_as_it_was_printed(shared):
    with (shared / "benchmarks" / "published.csv").open(encoding="utf-8", newline="") as file:
        printed = list(csv.DictReader(file))
    wanted = [row for row in printed if row["table"] != "later_work"]
    field = {
        (row.label, column.dataset, result.value, result.std, row.pretraining, row.source.removesuffix(" README"))
        for row, column, result in load_table("field").cells()
    }

    def number(text: object) -> float | None:
        return None if text in ("", None) else float(str(text))

    kept = [
        {
            "table": table.name.replace("-", "_"),
            "method": row.method,
            "dataset": column.dataset,
            "setting": row.setting,
            "metric": column.metric,
            "value": result.value,
            "std": result.std,
            "frames": row.frames,
            "views": row.views or "",
            "pretrain": row.pretraining or "",
            "gflops": row.gflops or "",
            "source": row.source,
        }
        for table in map(load_table, known_tables())
        for row, column, result in table.cells()
        if table.name != "field"
    ]
    for row in printed:
        row.update({key: number(row[key]) for key in ("value", "std", "frames")})

    def order(row) -> str:
        return repr(
            [row[key] for key in ("table", "source", "method", "setting", "frames", "views", "dataset", "metric")]
        )

    kept = [{**row, "frames": number(row["frames"])} for row in kept]
    assert sorted(kept, key=order) == sorted(wanted, key=order)
    later = {
        (
            row["method"].replace(" (LLM names)", ", LLM names"),
            *(row[key] for key in ("dataset", "value", "std", "pretrain")),
            row["source"].partition(" README")[0],
        )
        for row in printed
        if row["table"] == "later_work"
    }
    assert later <= field


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: top1", "metric: top2", r"columns\.0\.metric"),
        ("benchmark: hmdb51\n", "benchmark: hmdb15\n", 'did you mean "hmdb51"'),
        ("results: {HMDB51: 53.6}", "results: {HMDB: 53.6}", 'no "HMDB"; did you mean "HMDB51"'),
        ("training: k400, options: {views: {crops: 1", "training: k40, options: {views: {crops: 1", 'mean "k400"'),
        ("views: {crops: 1,", "views: {crop: 1,", "crop: Extra inputs"),
        ("varies: views.crops", "varies: views.crop", 'did you mean "views.crops"'),
        ("label: 3 crops", "label: 1 crop", "two rows are called 1 crop"),
        ("    source: *paper\n", "    source: *paper\n    without_run: no\n", "run or without_run|valid string"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(repository, tmp_path, old, new, message):
    text = (repository / "conf" / "published" / "zar-table5.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "zar-table5.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_tables_and_documents_agree_with_the_registry_on_what_runs(repository):
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    texts = {
        name: (repository / name).read_text("utf-8") for name in ("README.md", "docs/models.md", "docs/published.md")
    }
    (said,) = [
        line
        for line in texts["docs/published.md"].split("\n- ")
        if "are models of their own here" in " ".join(line.split())
    ]
    reasons = {}
    for system in shipped_systems():
        (line,) = [line for line in texts["README.md"].splitlines() if f"| `--model {system}`" in line]
        cost = re.search(rf"^\| {system} \|.* (\S+) \|$", texts["docs/models.md"], re.MULTILINE)
        assert ("ZAR is refused" in line) == (cost is not None and cost[1] == "refused")
        assert re.search(rf"^\| `{system}` \| .*`conf/train/{system}\.yaml`", texts["docs/models.md"], re.MULTILINE)
        assert plain(system) in plain(said)
        reasons[system] = "runs of it fill no cell here"
    seen = set()
    for row in (row for name in TABLES for row in load_table(name).rows if row.without_run):
        system = next((one for one in reasons if plain(row.method).startswith(plain(one))), None)
        seen.add(system)
        if system is not None:
            assert str(row.without_run).endswith(reasons[system]), row.method
            assert system in str(row.without_run), row.method
    assert seen == {None, *reasons}


def test_an_unknown_table_is_refused_with_the_nearest_name(output):
    with pytest.raises(ConfigError, match=r'^no published table "zar-tabel1"; did you mean "zar-table1"') as caught:
        reported("zar-tabel1", output, "terminal")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_without_a_run_every_form_shows_the_numbers_the_commands_and_the_errata(output, name, form):
    shown = reported(name, output, form)
    table = load_table(name)
    plain = shown.replace("\\", "")
    for row, column, result in table.cells():
        assert f"{result.value:.{row.decimals}f}" in shown
        command = fill_command(table, row, column, output)
        assert (str(row.without_run) in plain) if command is None else (command in shown)
    for note in table.notes:
        assert note.text in (plain if form != "csv" else shown.replace('""', '"'))


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", TABLES)
def test_the_table_fits_the_terminal_and_no_number_is_broken(output, write_run, name, width):
    for dataset in ("hmdb51", "ucf101", "k600"):
        write_run(f"a-{dataset}", dataset, [0.42] * 3)
        write_run(f"b-{dataset}", dataset, [0.53] * 3, checkpoint="/w/k400.safetensors", model="k400")
    write_run("c", "hmdb51-base2novel", [0.7, 0.5], checkpoint="/w/h.safetensors", model="h")
    stream = io.StringIO()
    table = load_table(name)
    cells = compare(table, find_runs(output).runs)
    show(table_blocks(table, cells)[:1], "terminal", Console(file=stream, width=width))
    body = stream.getvalue().strip().partition("\n")[2].splitlines()
    assert max(map(len, body)) <= width
    for one in cells:
        wanted = f"{one.published.value:.{one.row.decimals}f}"
        assert any(one.column.name in line and wanted in line for line in body)


def test_a_terminal_shows_value_difference_run_and_what_differs(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], views={"frames": 8})
    shown = reported("zar-table1", output, "terminal")
    line = next(line for line in shown.splitlines() if line.startswith("ZAR ") and "HMDB51" in line)
    assert re.search(r"43\.6 ± 0\.7 +44\.0 ± 0\.5 +\+0\.4 +r1 d\d d\d n\d", line)
    assert "frames 8 instead of 16" in shown
    assert f"mine: ViT-B-16-quickgelu (0123456789ab), seed 0, {output}/mine" in shown
    assert "+/-" in reported("zar-table1", output, "terminal", encoding="ascii")


def test_both_costs_are_printed(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45])
    shown = reported("zar-table1", output, "terminal")
    assert "ZAR: 281 GFLOPs as published, for the evaluation view alone; 13,769 with the 48 views of tuning" in shown
    assert "encoded 235 images, 4,127 GFLOPs" in shown


def test_csv_is_one_line_a_result_and_nothing_else(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], views={"frames": 8})
    rows = list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))
    assert len(rows) == len(load_table("zar-table1").cells())
    mine = next(row for row in rows if (row["method"], row["dataset"]) == ("ZAR", "hmdb51"))
    assert (mine["published"], mine["published_std"]) == ("43.6", "0.7")
    assert (mine["measured"], mine["measured_std"], mine["difference"]) == ("44.0", "0.5", "+0.4")
    assert mine["run"] == f"{output}/mine"
    assert "frames 8 instead of 16" in mine["protocol_differences"]
    assert "281 GFLOPs count the evaluation view alone" in mine["notes"]
    assert mine["command"] == ""
    empty = next(row for row in rows if (row["method"], row["dataset"]) == ("ZAR", "kinetics600"))
    assert (empty["measured"], empty["difference"], empty["run"]) == ("", "", "")
    assert empty["command"] == f"zar eval --dataset k600 --method zar --output {output}"


def test_markdown_is_a_table_with_commands_as_code(output, write_run):
    write_run("mine", "hmdb51", [0.42, 0.42, 0.42])
    shown = reported("zar-table1", output, "markdown")
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert any(line.startswith("| ZAR | HMDB51 | 43.6 ± 0.7 | 42.0 ± 0.5 | -1.6 | r") for line in lines)
    assert f"`zar eval --dataset k600 --method zar --output {output}`" in shown
    assert "- c" in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zar-table1", "The 281 GFLOPs count the evaluation view alone; tuning adds 48 views."),
        ("zar-table2", "repeats HMDB51's row for vanilla CLIP"),
        ("zar-table2", "repeats X-CLIP's row for A5"),
        ("zar-table3", "at 70 % (77.42), not at the 80 % (77.37)"),
        ("ezclip", "selected on the test sets"),
    ],
)
def test_the_known_errata_are_told(output, name, words):
    for form in ("terminal", "markdown", "csv"):
        assert words in reported(name, output, form)
