"""The page is whole, stands alone, and shows no markup that a file put there."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpdlf.experiments.refine import refine
from hpdlf.experiments.report import report
from hpdlf.models.plan import Strategy

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attributes} & {"src", "href"}, "loads something"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(path: Path) -> tuple[_Page, str]:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page, "".join(page.text)


@pytest.mark.parametrize(
    "strategy", [Strategy(batch=32), Strategy(batch=32, data=2, pipeline=2, microbatches=2)], ids=str
)
def test_the_page_stands_alone(make_run: Callable[..., Path], tmp_path: Path, strategy: Strategy) -> None:
    folder = make_run(strategy, hostile=HOSTILE)
    page, text = _read(report(folder, tmp_path / "r.html"))
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    for words in (
        f"Ada {HOSTILE}",
        "Predicted by the plan",
        "Measured",
        "unavailable: the run found no energy counter",
        "97.5 % at the end",
        "Started again from the last checkpoint once",
        "Every dependency of the program is honoured",
        "error −50",
    ):
        assert words in text


def test_after_refining_both_predictions_are_shown(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(Strategy(batch=32, data=2))
    refine(folder, tmp_path / "db.duckdb")
    _, text = _read(report(folder, tmp_path / "r.html"))
    assert "Predicted after refining" in text
    assert "after refining" in text


def test_what_is_missing_is_said(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(Strategy(batch=32))
    for name in ("trace.rank0.attempt0.jsonl", "predicted.trace.jsonl", "metrics.jsonl", "approval.json"):
        (folder / name).unlink()
    _, text = _read(report(folder, tmp_path / "r.html"))
    assert "unavailable: nothing was measured" in text
    assert "unavailable: no step was reported" in text
    assert "unavailable: the run's folder holds no approval" in text
