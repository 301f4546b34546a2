from __future__ import annotations

import re

from common import html_page
from tests.common.html_reader import Page


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    sections = [
        html_page.heading("Title", level=1),
        html_page.note("A note."),
        html_page.cards([("events", "12k"), ("users", "7")]),
        html_page.side_by_side([html_page.figure("<svg></svg>", "How to read it."), "<div>beside</div>"]),
        html_page.table(("name", "figure"), [("one", "1"), ("two", "2")]),
    ]
    html = html_page.page("Title", sections)
    page = Page(html)
    assert html.startswith("<!doctype html>")
    for words in ("Title – Segue", "A note.", "12k", "events", "How to read it.", "beside", "figure", "two"):
        assert words in page.texts
    assert page.tags.count("tr") == 3
    assert page.tags.count("th") == 2
    assert page.tags.count("td") == 4
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import|javascript:", html)
    assert "prefers-color-scheme: dark" in html
    assert ("name", "viewport") in page.attributes


def test_text_is_never_markup() -> None:
    text = '<b onload="x">&amp;'
    html = html_page.page(
        text,
        [
            html_page.heading(text),
            html_page.note(text),
            html_page.cards([(text, text)]),
            html_page.figure("", text),
            html_page.table([text], [[text]]),
        ],
    )
    page = Page(html)
    assert page.texts.count(text) == 7  # heading, note, two of the card, caption, two cells; the title has more in it
    assert "onload" not in {name for name, _ in page.attributes}


def test_a_table_without_names_has_no_head() -> None:
    page = Page(html_page.table((), [("one", "1")]))
    assert "th" not in page.tags
    assert page.tags.count("tr") == 1
