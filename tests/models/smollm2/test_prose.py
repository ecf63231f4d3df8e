"""Paragraphs out of HTML, fortune files, wrapped text and R data."""

from __future__ import annotations

import zlib

import pytest

from models.smollm2 import prose

PAGE = """<html><head><title>The title of the page is not read</title></head><body>
<nav><p>One two three four five six: a menu of the page.</p></nav>
<div class="toc other"><ul><li>What the page has to say<div>and more of all that here</div></ul></div>
<h1>Short heading</h1>
<p>The first paragraph has <b>bold</b> words,
   a line&nbsp;break &amp; an entity.
<p>The second is <a href="x">not closed<br>at all</a> by its writer
<pre>code(1)
  code(2)
</pre>
<ul><li>An item with enough words in it<li>Too few words</ul>
<script>if (a < b) { one two three four five six }</script>
</body></html>"""
PARAGRAPHS = [
    "The first paragraph has bold words, a line break & an entity.",
    "The second is not closed at all by its writer",
    "An item with enough words in it",
]


def test_html_gives_the_paragraphs_without_what_stands_around_them() -> None:
    assert prose.from_html(PAGE) == PARAGRAPHS


def test_html_gives_code_as_it_stands_where_it_is_asked_for() -> None:
    assert prose.from_html(PAGE, code=True) == [*PARAGRAPHS[:2], "code(1)\n  code(2)", PARAGRAPHS[2]]


def test_what_is_left_out_ends_with_its_own_element() -> None:
    page = "<div class=toc><p>one two three four five<div>inner</div><li>six</div><p>This is read, all of it."
    assert prose.from_html(page) == ["This is read, all of it."]


def test_wrapped_lines_are_joined() -> None:
    text = "A paragraph of\r\n  two lines.\n\nShort.\n \nAnother one that stands alone.\n"
    assert prose.from_plain(text) == ["A paragraph of two lines.", "Another one that stands alone."]


def test_fortunes_keep_their_lines() -> None:
    text = "Roses are red,\n\tviolets are 100% blue.\n%\n%\nSecond.\n%\n"
    assert prose.from_fortunes(text) == ["Roses are red,\n    violets are 100% blue.", "Second."]


def r_object(*strings: bytes) -> bytes:
    """A chunk of a lazy-load database: a vector of strings, which is type 16, with a flag for ASCII or UTF-8."""
    data = b"X\n" + (16).to_bytes(4, "big") + len(strings).to_bytes(4, "big")
    for text in strings:
        flags = 0x00040009 if text.isascii() else 0x00008009
        data += flags.to_bytes(4, "big") + len(text).to_bytes(4, "big") + text
    return len(data).to_bytes(4, "big") + zlib.compress(data)


def test_r_data_gives_each_vector_of_strings() -> None:
    content = r_object(b"EMMA", b"", b"by J. A.") + r_object("Brontë".encode())
    assert prose.from_r_data(content) == [["EMMA", "", "by J. A."], ["Brontë"]]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_old_files_are_read_too(tmp_path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode(encoding))
    assert prose.read_text(tmp_path / "a.txt") == "naïve"
