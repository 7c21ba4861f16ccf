"""The page: one safe, offline, reproducible file whose numbers are the records'."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tunewise.errors import StoreError
from tunewise.pages.page import script_json
from tunewise.report.report_page import render, write_report

EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """Elements with attributes, text outside scripts, and scripts by their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.words: list[str] = []
        self._inside: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = {key: value or "" for key, value in attrs}
        self.elements.append((tag, found))
        self._inside = {"": tag, **found} if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.words.append(data)
        else:
            self.scripts.append((self._inside, data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def code(self) -> list[str]:
        """What runs: the script elements that aren't data."""
        return [text for attributes, text in self.scripts if attributes == {"": "script"}]


@pytest.fixture(scope="module")
def page(whole):
    return Page(render("Which method?", whole.data))


def figures_of(page: Page) -> dict[str, dict]:
    return {a["id"]: json.loads(text) for a, text in page.scripts if a.get("type") == "application/json"}


def test_one_file_is_written_whole_and_nothing_beside_it(tmp_path, whole):
    target = tmp_path / "out" / "report.html"
    write_report(target, "Which method?", whole.data)
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    assert target.read_text(encoding="utf-8") == render("Which method?", whole.data)


def test_an_older_report_stays_where_the_new_one_cannot_be_written(tmp_path, whole, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="no room to write"):
        write_report(target, "Which method?", whole.data)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.elements:
        assert "srcset" not in attributes
        assert "src" not in attributes
        for key in ("href", "data", "action", "poster"):
            if key in attributes:
                assert not re.match(r"(?i)\s*([a-z]+:)?//|(?!data:)[a-z]+:", attributes[key]), (tag, attributes[key])
        assert tag not in ("iframe", "object", "embed", "base", "form")
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_style_sheet_loads_nothing(whole):
    style = render("t", whole.data).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_only_the_pages_own_two_scripts_may_run(page):
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.code]
    assert sorted(hashes) == sorted(allowed)
    assert len(hashes) == 2
    script_policy = policy.split("script-src")[1].split(";")[0]
    assert "unsafe" not in script_policy


@pytest.mark.parametrize("text", [EVIL, "<!--<script>", "]]>", "&lt;/script&gt;", "\u2028"])
def test_json_cannot_leave_its_script_element(text):
    inside = script_json(json.dumps({"name": text}, ensure_ascii=False))
    assert not set("<>&\u2028") & set(inside)
    assert json.loads(inside) == {"name": text}


def test_what_users_wrote_is_text_and_never_markup(compared):
    found = compared(
        methods=("lora", "cla"),
        labels=[EVIL, "<img src=x onerror=alert(2)>", "a & b"],
        notes=[f"note {EVIL}"],
        data='data/"><svg onload=alert(3)>.csv',
        status={("cla", 2): "failed"},
        error=f"error {EVIL}",
    )
    folders = {r.id: "javascript:alert(4)//" + EVIL for r in found.records}
    text = render(f"title {EVIL}", replace(found.data, folders=folders))
    tame = compared(methods=("lora", "cla"), notes=["a note"], status={("cla", 2): "failed"})
    ordinary = Page(render("t", tame.data))
    page = Page(text)
    assert "<script>alert(1)" not in text
    assert not any(set("<>&") & set(json_text) for a, json_text in page.scripts if "json" in a.get("type", ""))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in ordinary.elements]
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert all(link.startswith(("#", "./", "data:")) for link in links)
    assert f"title {EVIL}" in page.text
    assert f"note {EVIL}" in page.text
    assert any(EVIL in a.get("aria-label", "") for _, a in page.elements)


def test_same_arguments_same_bytes(whole, compared):
    assert render("t", whole.data) == render("t", compared().data)


def test_every_run_is_listed_with_its_numbers_and_its_folder(page, whole):
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    for record in whole.records:
        assert f"./runs/{record.id}/" in links
        assert record.id in page.text
        accuracy = f"{100 * record.results.test.metrics['accuracy']:.2f}"
        row = page.text.split(f"{record.id}")[0].rsplit(" done ", 1)[1]
        assert row.split()[:4] == [
            accuracy,
            f"{record.results.test.loss:.4f}",
            f"{record.results.train.loss:.4f}".replace("-", "−"),
            f"{record.results.gap:.4f}",
        ]


def test_the_recommendation_comes_first_with_runner_up_and_what_would_change_it(page, whole):
    said = whole.recommendation
    body = page.text.split("Recommendation", 1)[1]
    assert body.startswith(f" Use {said.choice}")
    for sentence in [*said.doubts, said.answer.partition(": it ")[2], said.noise, *said.would_change]:
        assert sentence in body
    assert f"Runner-up {said.runner_up}" in body


def test_how_it_was_measured_is_said(page):
    for part in (
        "split seed 0",
        "lowest validation loss",
        "Holm-corrected",
        "cpu: made up, 2 threads",
        "torch 2.13.0",
        "656 tokens",
        "40 steps each",
        "peft.PeftModel.from_pretrained",
        "learning rate 0.0002",
        "learning rate 0.01",
    ):
        assert part in page.text, part


def test_downloads_are_the_table(page, whole):
    files = {a["download"]: a["href"] for tag, a in page.elements if "download" in a}
    assert set(files) == {"comparison.csv", "comparison.md", "comparison.tex"}
    csv = base64.b64decode(files["comparison.csv"].split("base64,")[1]).decode()
    assert repr(whole.summaries[0].test_metric.mean) in csv


def test_figures_are_named_described_and_drawn_once(page):
    drawn = [a for tag, a in page.elements if "data-figure" in a]
    assert len(drawn) == len(figures_of(page)) == 3 + 3 + 1 + 5
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
        assert attributes["data-figure"] in figures_of(page)


def test_headings_tables_and_language_are_there_for_screen_readers(page):
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    assert all("scope" in a for tag, a in page.elements if tag == "th")
    regions = [a for tag, a in page.elements if a.get("role") == "region"]
    assert len(regions) == tags.count("table") == 4  # the comparison, its noise (2), the runs
    assert tags.count("caption") == 4
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    referred = [name for _, a in page.elements for name in a.get("aria-labelledby", "").split()]
    assert set(referred) <= set(ids)
    assert {a["href"][1:] for tag, a in page.elements if tag == "a" and a["href"].startswith("#")} <= set(ids)


@pytest.mark.parametrize(
    "made",
    [
        {"methods": ("lora",), "seeds": 1, "with_costs": False, "epochs": 1},
        {"with_costs": False},
        {"status": {("cla", 0): "diverged", ("paca", 1): "oom", ("lora", 2): "running"}},
        {"methods": ("lora", "cla"), "status": {(m, s): "failed" for m in ("lora", "cla") for s in range(3)}},
        {"labels": [f"class {i}" for i in range(70)]},
        {"labels": ["only one"]},
    ],
    ids=["one-run", "no-costs", "some-failed", "all-failed", "many-classes", "one-class"],
)
def test_odd_comparisons_still_make_a_report(compared, made):
    found = compared(**made)
    text = Page(render("odd", found.data)).text
    for record in found.records:
        assert record.id in text
        assert (record.error or "") in text


def test_missing_histories_and_folders_are_no_fault(whole):
    page = Page(render("t", replace(whole.data, histories={}, folders={})))
    assert "Learning curves" not in page.text
    assert whole.records[0].id in page.text


def test_all_failed_says_that_there_is_no_recommendation(compared):
    found = compared(methods=("lora",), seeds=1, status={("lora", 0): "failed"})
    assert "No recommendation" in Page(render("t", found.data)).text
