"""The report as a user meets it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest

from budgetcl.errors import UserError
from budgetcl.report.page import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    from contextlib import redirect_stdout
    from io import BytesIO, StringIO

    from PIL import Image

    strip = BytesIO()
    Image.new("RGB", (24, 8), "red").save(strip, "png")
    (records / "naive-classes-0" / "pictures.png").write_bytes(strip.getvalue())
    out, printed = tmp_path_factory.mktemp("report"), StringIO()
    with redirect_stdout(printed):
        report([records, records / "naive-timed-0"], out)
    return out, printed.getvalue()


def test_page_tables_and_plots_are_written(written):
    out, _ = written
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", "summary.csv", "plots"}
    linked = re.findall(r"\]\((plots/[^)]+)\)", (out / "report.md").read_text(encoding="utf-8"))
    assert len(linked) >= 13
    assert all((out / name).is_file() for name in linked)


def test_the_page_needs_nothing_from_outside(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", html)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\((?!#)|<script|<link rel=.stylesheet", html)
    assert html.count("data:image/png;base64,") == 1


def test_unfinished_runs_are_left_out_and_named(written):
    out, printed = written
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "1 unfinished run is left out: killed." in html
    assert "1 unfinished run is left out: killed." in printed
    assert "killed" not in (out / "summary.csv").read_text(encoding="utf-8")


def test_the_terminal_gets_plain_aligned_tables_of_at_most_120_columns(written):
    out, printed = written
    lines = printed.splitlines()
    assert max(len(line) for line in lines if str(out) not in line) <= 120  # a path is as long as it is
    assert "\x1b" not in printed
    rows = [line for line in lines if line.lstrip().startswith(("naive ", "kd ", "er "))]
    assert len(rows) == 6
    assert any("▼" in row for row in rows)
    assert not any("…" in line for line in lines)
    assert str(out / "report.html") in printed


def test_how_it_was_run_says_budget_audit_and_shift(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    assert "10 reference updates a time step" in html
    assert "9 of 9 agree to the FLOP" in html
    assert "24 samples, chosen on the tuning prefix unless set" in html


def test_an_audit_that_does_not_agree_is_named(tmp_path, write_record, streams, capsys):
    import json

    for method in ("naive", "er"):
        write_record(tmp_path / method, streams["classes"](0), method, "sampling", 0)
    path = tmp_path / "er" / "run.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["audit"] = {"step": 2, "counted": 9000, "charged": 8000, "agrees": False}
    path.write_text(json.dumps(info), encoding="utf-8")
    report([tmp_path])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 agree to the FLOP; NOT in agreement: er seed 0 (step 2: counted 9,000, charged 8,000)" in page
    assert "One seed (0)" in capsys.readouterr().out


def test_runs_under_two_budgets_stand_in_two_sections_and_the_page_says_so(tmp_path, write_record, streams, capsys):
    for updates in (10, 20):
        budget = {"updates": updates, "flops": None}
        write_record(tmp_path / str(updates), streams["classes"](0), "naive", "baseline", 0, budget=budget)
    report([tmp_path])
    printed = capsys.readouterr().out
    assert "are not comparable: they stand in 2 sections" in printed
    assert "classes (budget.updates=10)" in printed
    assert "classes (budget.updates=20)" in printed


def test_names_from_records_are_escaped(tmp_path, write_record, streams, capsys):
    write_record(tmp_path / "odd", streams["classes"](0), "<script>alert(1)</script>[red]", "sampling", 0)
    report([tmp_path])
    assert "<script>" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "[red]" in capsys.readouterr().out.replace("…", "[red]")


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_two_orderings_of_one_set_are_told_apart_on_the_page_in_markdown_and_in_the_terminal(
    tmp_path, write_record, streams, capsys
):
    note = "CGLM has two orderings: never compare runs on one with runs on the other"
    for i, name in enumerate(("cglm_upload", "cglm_exif")):
        stream = replace(streams["timed"](i), name=name)
        write_record(tmp_path / name, stream, "naive", "baseline", 0, notes=[note])
    report([tmp_path])
    prints = [
        json.loads((tmp_path / name / "run.json").read_text())["fingerprint"] for name in ("cglm_exif", "cglm_upload")
    ]
    line = (
        f"Different streams, whose runs must not be compared: 'cglm_exif' with the fingerprint {prints[0]} and "
        f"'cglm_upload' with the fingerprint {prints[1]}, at seed 0 ({note})."
    )
    assert line in " ".join(capsys.readouterr().out.split())
    assert line in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert line in unescape((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        report([tmp_path])
    assert "holds no record of a run" in one_line(error)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        report([tmp_path / "nowhere"])
    assert "does not exist" in one_line(error)


def test_only_unfinished_runs_are_refused(tmp_path, write_record, streams):
    write_record(tmp_path / "killed", streams["classes"](0), "naive", "baseline", 0, finish=False)
    with pytest.raises(UserError) as error:
        report([tmp_path])
    assert "only unfinished runs (1)" in one_line(error)


@pytest.mark.parametrize("name", ["predictions.parquet", "steps.parquet", "ledger.parquet", "stream.parquet"])
def test_a_damaged_table_is_refused_with_its_name(tmp_path, write_record, streams, name):
    folder = write_record(tmp_path / "run", streams["classes"](0), "naive", "baseline", 0)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        report([tmp_path])
    assert name in one_line(error)
    assert not (tmp_path / "report.html").exists()


def test_a_lost_file_is_refused(tmp_path, write_record, streams):
    folder = write_record(tmp_path / "run", streams["classes"](0), "naive", "baseline", 0)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError) as error:
        report([tmp_path])
    assert "config.yaml" in one_line(error)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, write_record, streams):
    write_record(tmp_path / "run", streams["classes"](0), "naive", "baseline", 0)
    (tmp_path / "file").write_text("taken", encoding="utf-8")
    with pytest.raises(UserError) as error:
        report([tmp_path / "run"], tmp_path / "file")
    assert "--out" in one_line(error)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_opens_in_a_browser_without_errors(written, tmp_path):
    out, _ = written
    answer = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--v=0", "--dump-dom", (out / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert answer.stdout.count('role="img"') == 14
    assert "CONSOLE" not in answer.stderr
    assert "How to read this page" in answer.stdout
