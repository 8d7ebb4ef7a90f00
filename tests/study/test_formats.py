import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from sgquant_optuna.study.formats import to_csv, to_html, to_json, to_markdown
from sgquant_optuna.study.report import report
from tests.hand_made import final_result, measured, new_study

NASTY = """a"b'<script>alert(1)</script>|`[x](javascript:y)'; DROP TABLE trials; -- {0} [/] $x$"""


def study_named(name="plain"):
    study = new_study(name=name)
    study.add_trial(measured((1, 1, 1, 1), 9.0))
    study.add_trial(measured((2, 4, 8, 8), 0.25))
    return study


def test_json_holds_the_numbers():
    study = study_named()
    final_result((90.0, 91.0), (89.0, 90.5)).save(study)
    told = json.loads(to_json(report(study)))
    assert (told["study"], told["trial"], told["is_feasible"]) == ("plain", 1, True)
    assert told["bit_widths"] == {
        "conv1/embedding/bucket0": 2,
        "conv1/embedding/bucket1": 4,
        "conv2/embedding/bucket0": 8,
        "conv2/embedding/bucket1": 8,
    }
    assert told["memory"]["honest"]["memory_bytes"] == study.trials[1].value
    assert told["validation"] == {"full_precision": 90.0, "quantized": 89.75, "drop": 0.25}
    assert told["final"]["test_drop"] == pytest.approx(0.75)
    assert told["trials"] == {"finished": 2, "started": 2}


def test_csv_has_a_line_for_each_trial():
    study = study_named()
    rows = list(csv.DictReader(io.StringIO(to_csv(study, report(study)))))
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert [row["is_chosen"] for row in rows] == ["0", "1"]
    assert [row["is_feasible"] for row in rows] == ["0", "1"]
    assert rows[1]["conv1/embedding/bucket1"] == "4"
    assert float(rows[1]["saving"]) == study.trials[1].user_attrs["saving"]


def test_markdown_tables_are_whole():
    lines = to_markdown(report(study_named())).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    widths = [len(re.split(r"(?<!\\)\|", line)) for line in tables]
    assert widths[:4] == [widths[0]] * 4
    assert "| conv1 | embedding | 64,000 | 2 | 4 |" in tables
    assert any("89.75 %" in line for line in tables)


def test_markdown_of_a_nasty_name_is_text():
    heading = to_markdown(report(study_named(NASTY))).splitlines()[0]
    assert "<script>" not in heading and "&lt;script&gt;" in heading
    assert r"\[x\](javascript:y)" in heading and r"\|\`" in heading


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_one_page_with_its_images():
    png = b"\x89PNG and more"
    page = Page(to_html(report(study_named()), {"front": ("Memory & drop", png)}))
    assert "89.75 %" in page.text
    assert page.tags.count("table") == 2
    (image,) = page.images
    head, _, body = image["src"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(body) == png
    assert image["alt"] == "Memory & drop"
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_html_of_a_nasty_name_is_text():
    page = Page(to_html(report(study_named(NASTY)), {}, note="<b>none</b>"))
    assert not {"script", "a", "b"} & set(page.tags)
    assert NASTY in page.text and "<b>none</b>" in page.text


def test_a_name_that_looks_like_markup_is_shown_as_it_is():
    assert NASTY.split("|")[0] in " ".join(str(report(study_named(NASTY))).split())


def test_a_bare_report_shows_its_tables():
    found = report(study_named())
    assert repr(found) == str(found)
    assert "89.75 %" in repr(found) and "fingerprint" not in repr(found)


def test_a_notebook_shows_the_tables_and_a_nasty_name_as_text():
    shown = Page(report(study_named(NASTY))._repr_html_())
    assert shown.tags.count("table") == 2 and "89.75 %" in shown.text
    assert not {"script", "a", "html", "style"} & set(shown.tags)
    assert f"{NASTY}: bits of trial 1" in shown.text


def test_results_are_a_line():
    found = report(study_named())
    assert repr(found.result) == (
        f"<TrialResult: saving {found.result.saving:.1f}x, drop 0.25 and at "
        f"most 0.25, validation metric 89.75, {found.result.memory_bytes:,.0f} bytes, 4 bit "
        f"widths>"
    )
    final = final_result((90.0, 91.0), (89.0, 90.5))
    assert repr(final) == (
        "<FinalResult: trial 1 holds on 2 trainings, drop at most 0.4, 0.75 on test items>"
    )
