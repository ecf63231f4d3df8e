"""English for training, calibration and tests, from documents in Debian's packages that every Debian machine can get.

    apt-get update
    python -m models.smollm2.text --output FOLDER

writes training.txt, calibration.txt and test_KIND.txt for a novel, technical prose, a dictionary of jargon, fortunes
and a manual with code. No document is in two of them, and a paragraph that two documents share is left in the tests
alone. Packages are downloaded and unpacked, not installed; packages.json says in which versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from models.smollm2.prose import from_fortunes, from_html, from_plain, from_r_data, read_text

PIECE = 4000  # characters in a row from one document in a mixed file: about 900 tokens
CACHE = Path.home() / ".cache" / "dynorm-onnx" / "packages"


@dataclasses.dataclass(frozen=True)
class Source:
    """Some files of a package, and the file of ours that their text goes to."""

    to: str
    package: str
    files: str  # a glob below the package's root
    reader: str = "html"
    most: int = 2_000_000  # characters, so that no single author sets the tone


AUSTEN = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
SOURCES = (
    Source("test_novel", "r-cran-janeaustenr", AUSTEN, "novel Persuasion"),
    Source("test_technical", "sqlite3-doc", "usr/share/doc/sqlite3/*.html"),
    Source("test_jargon", "jargon-text", "usr/share/doc/jargon-text/jargon.txt.gz", "plain"),
    Source("test_fortunes", "fortunes-min", "usr/share/games/fortunes/fortunes", "fortunes"),
    Source("test_fortunes", "fortunes-min", "usr/share/games/fortunes/literature", "fortunes"),
    Source("test_code", "python3.11-doc", "usr/share/doc/python3.11/html/tutorial/*.html", "code"),
    Source("calibration", "r-cran-janeaustenr", AUSTEN, "novel NORTHANGER ABBEY"),
    Source("calibration", "debian-reference-en", "usr/share/debian-reference/*.html"),
    Source("calibration", "developers-reference", "usr/share/developers-reference/developers-reference.html"),
    Source("calibration", "dict-devil", "usr/share/dictd/devil.dict.dz", "plain"),
    Source("calibration", "fortunes", "usr/share/games/fortunes/[p-w]*[!8t]", "fortunes", 300_000),
    Source("calibration", "apache2-doc", "usr/share/doc/apache2-doc/manual/en/**/*.html", "code", 300_000),
    Source("training", "r-cran-janeaustenr", AUSTEN, "novel EMMA"),
    Source("training", "r-cran-janeaustenr", AUSTEN, "novel MANSFIELD PARK"),
    Source("training", "r-cran-janeaustenr", AUSTEN, "novel PRIDE AND PREJUDICE"),
    Source("training", "r-cran-janeaustenr", AUSTEN, "novel SENSE AND SENSIBILITY"),
    Source("training", "anarchism", "usr/share/doc/anarchism/html/[as]*[0-9].html", most=3_000_000),
    Source("training", "debian-handbook", "usr/share/doc/debian-handbook/html/en-US/*.html"),
    Source("training", "fortunes", "usr/share/games/fortunes/[a-n]*[!8t]", "fortunes"),
    Source("training", "rust-doc", "usr/share/doc/rust-doc/html/book/ch*.html", "code"),
    Source("training", "python-django-doc", "usr/share/doc/python-django-doc/html/topics/**/*.html", "code"),
    Source("training", "git-doc", "usr/share/doc/git-doc/*.html"),
    Source("training", "postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html/*.html"),
    Source("training", "gnumed-doc", "usr/share/doc/gnumed/**/*.html"),
    Source("training", "aptitude-doc-en", "usr/share/doc/aptitude/html/en/*.html"),
)
TESTS = sorted({source.to for source in SOURCES if source.to.startswith("test_")})


def unpacked(packages: list[str], cache: Path) -> dict[str, str]:
    """Fetch the packages by apt into `cache` and unpack each there as NAME/; returns the version of each."""
    cache.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in packages if not (cache / name).is_dir()]:
        subprocess.run(["apt-get", "download", "-q", *missing], cwd=cache, check=True)
    for name in missing:
        (file,) = cache.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", file, cache / name], check=True)
    files = {name: next(cache.glob(f"{name}_*.deb")) for name in packages}
    return {name: file.name.split("_")[1].replace("%3a", ":") for name, file in files.items()}


def paragraphs(source: Source, root: Path) -> list[str]:
    """The text of a source whose package is unpacked at `root`; raises ValueError where there is none."""
    found: list[str] = []
    for path in sorted(path for path in root.glob(source.files) if path.is_file()):
        found += read(path, source.reader)
    if not found:
        raise ValueError(f"{source.package} has no text in {source.files}")
    return list(within(found, source.most))


def read(path: Path, reader: str) -> list[str]:
    """The paragraphs of a file, by the name of its format."""
    if reader.startswith("novel "):
        novels = {lines[0].upper(): lines for lines in from_r_data(path.read_bytes())}
        return from_plain("\n".join(novels[reader.removeprefix("novel ").upper()]))
    if reader == "html" or reader == "code":
        return from_html(read_text(path), code=reader == "code")
    return {"plain": from_plain, "fortunes": from_fortunes}[reader](read_text(path))


def within(found: list[str], most: int) -> Iterator[str]:
    """Paragraphs from the whole of a long list, spread evenly in runs, of about `most` characters together."""
    share = min(1.0, most / sum(map(len, found)))
    runs = list(pieces(found))
    yield from (text for place, run in enumerate(runs) if int((place + 1) * share) > int(place * share) for text in run)


def pieces(found: list[str]) -> Iterator[list[str]]:
    """Paragraphs in order, in runs of at least PIECE characters."""
    run: list[str] = []
    for text in found:
        run.append(text)
        if sum(map(len, run)) >= PIECE:
            yield run
            run = []
    if run:
        yield run


def mixed(found: list[str]) -> list[str]:
    """Runs of paragraphs in an order that depends on nothing but their text."""
    runs = ["\n\n".join(run) for run in pieces(found)]
    return sorted(runs, key=lambda run: (zlib.crc32(run.encode()), run))


def texts(cache: Path) -> dict[str, str]:
    """The content of each file by its name, from packages that are unpacked in `cache`."""
    sources: dict[str, list[list[str]]] = {}
    taken: set[str] = set()
    # Tests come first in SOURCES: what they have is taken from the others, and none has a paragraph twice.
    for source in SOURCES:
        found = [text for text in paragraphs(source, cache / source.package) if text not in taken]
        sources.setdefault(source.to, []).append(list(dict.fromkeys(found)))
        taken.update(found)
    joined = {}
    for name, parts in sources.items():
        together = [text for part in parts for text in part]
        joined[name] = "\n\n".join(together if name in TESTS else mixed(together)) + "\n"
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    versions = unpacked(sorted({source.package for source in SOURCES}), args.cache)
    for name, text in texts(args.cache).items():
        (args.output / f"{name}.txt").write_text(text)
        print(f"{name}.txt: {len(text):,} characters")
    (args.output / "packages.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
