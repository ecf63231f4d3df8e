"""Running text out of the formats that Debian's packages carry it in: HTML, fortune files, dictd's files, R data."""

from __future__ import annotations

import gzip
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

_BLOCKS = {"p", "div", "li", "dd", "dt", "td", "th", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre",
           "section", "article", "ul", "ol", "dl", "table", "body", "hr"}  # fmt: skip
_UNREAD = {"script", "style", "head", "nav", "header", "footer", "form", "svg", "math"}
# What the writers of manuals (Sphinx, DocBook, mdBook) call that which stands around the text.
_AROUND = {"sphinxsidebar", "related", "toc", "navheader", "navfooter", "sidebar", "headerlink", "book-toc", "nosearch"}
_FEWEST_WORDS = 5


class _Prose(HTMLParser):
    """Collects the text of each block-level element; of those in _UNREAD or of a class in _AROUND nothing."""

    def __init__(self, code: bool) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self._code, self._parts, self._verbatim = code, [""], False
        # Old pages leave <p> and <li> open: what is left out ends where elements of its own name have.
        self._unread, self._depth = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = set((dict(attrs).get("class") or "").split())
        if self._depth:
            self._depth += tag == self._unread
        elif tag in _UNREAD or classes & _AROUND:
            self._unread, self._depth = tag, 1
        elif tag in _BLOCKS and not self._verbatim:
            self.close_block()
            self._verbatim = tag == "pre"
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._depth:
            self._depth -= tag == self._unread
        elif tag in _BLOCKS and (tag == "pre" or not self._verbatim):
            self.close_block()
            self._verbatim = False

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self._parts.append(data)

    def close_block(self) -> None:
        """End the paragraph that is being read."""
        text = "".join(self._parts)
        self._parts = []
        if self._verbatim:
            self.blocks += [text.strip("\n")] if self._code else []
        elif len((line := " ".join(text.split())).split()) >= _FEWEST_WORDS:
            self.blocks.append(line)


def from_html(source: str, code: bool = False) -> list[str]:
    """The paragraphs of a page; with `code` its preformatted parts too. Lines of a few words are headings: left out."""
    parser = _Prose(code)
    parser.feed(source)
    parser.close_block()
    return parser.blocks


def from_plain(source: str) -> list[str]:
    """The paragraphs of text whose lines are broken, between blank lines; each becomes one line."""
    joined = (" ".join(part.split()) for part in re.split(r"\n\s*\n", source.replace("\r", "")))
    return [text for text in joined if len(text.split()) >= _FEWEST_WORDS]


def from_fortunes(source: str) -> list[str]:
    """The fortunes of a file, which are between lines of "%"; their own lines stay."""
    return [text for part in re.split(r"^%\n", source, flags=re.M) if (text := part.strip().expandtabs(4))]


def from_r_data(content: bytes) -> list[list[str]]:
    """The character vectors of a package's lazy-load database (Rdata.rdb).

    The file is a row of objects, each its length and a zlib stream, in R's XDR format. There a string is its flags,
    its length and its bytes; nothing else needs to be understood for an object that is a vector of strings.
    """
    found = []
    while content:
        stream = zlib.decompressobj()
        found.append(_r_strings(stream.decompress(content[4:])))
        content = stream.unused_data
    return [strings for strings in found if strings]


def _r_strings(data: bytes) -> list[str]:
    strings, place = [], 0
    # 9 is a string's type; 0x40 marks ASCII, 0x08 UTF-8
    while (match := re.compile(rb"\x00[\x04\x00][\x00\x80]\x09(....)", re.S).search(data, place)) is not None:
        length = int.from_bytes(match[1], "big")
        strings.append(data[match.end() : match.end() + length].decode(errors="replace"))
        place = match.end() + length
    return strings


def read_text(path: Path) -> str:
    """A file's text, unpacked where it is compressed."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")
