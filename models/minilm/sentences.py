"""English sentences for calibration and evaluation that every machine has: from Python's own docstrings.

    python models/minilm/sentences.py --output FOLDER

writes calibration.jsonl and evaluation.jsonl, one {"text": ...} per line; with --training also training.jsonl,
all others of the standard library and those of the installed packages: what there is depends on the machine.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

CALIBRATION = 1024
SPARE = 256  # behind those for calibration, in the same file: the converter validates on them
EVALUATION = 256
FEWEST_WORDS, MOST_WORDS = 6, 40

_NOT_LIBRARY = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)][.?!])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'\"()/.%-]*[.?!]")


def split_sentences() -> tuple[list[str], list[str]]:
    """(calibration and spare sentences, evaluation sentences), no sentence twice, in an order that is repeatable.

    Raises ValueError where the standard library has too few (an installation without its source).
    """
    sentences = _shuffled(_folder_sentences(_library()))
    front = CALIBRATION + SPARE
    if len(sentences) < front + EVALUATION:
        raise ValueError(f"the standard library's docstrings have {len(sentences)} sentences, too few")
    return sentences[:front], sentences[front : front + EVALUATION]


def training_sentences() -> list[str]:
    """Every sentence of the standard library and the installed packages that split_sentences() gave to nothing else."""
    packages = Path(sysconfig.get_paths()["purelib"])
    calibration, evaluation = split_sentences()
    found = {*_folder_sentences(_library()), *_folder_sentences(packages)}
    return _shuffled(found.difference(calibration[CALIBRATION:], evaluation))


def _shuffled(sentences: Iterable[str]) -> list[str]:
    """Each once, in an order that depends on nothing but the sentences."""
    return sorted(set(sentences), key=lambda text: (zlib.crc32(text.encode()), text))


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _folder_sentences(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY.intersection(path.relative_to(root).parts):
            for docstring in _docstrings(path):
                yield from _sentences(docstring)


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in the library are not our business
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and files of other versions of Python
            return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def _sentences(docstring: str) -> Iterator[str]:
    """Whole sentences of running text; code, tables and signatures do not look like one."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = len(sentence.split())
            if FEWEST_WORDS <= words <= MOST_WORDS and _SENTENCE.fullmatch(sentence):
                yield sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), help="the folder to write to (default: here)")
    parser.add_argument("--training", action="store_true", help="also training.jsonl (a minute or two)")
    args = parser.parse_args()
    output = args.output
    output.mkdir(parents=True, exist_ok=True)
    files = dict(zip(("calibration", "evaluation"), split_sentences(), strict=True))
    if args.training:
        files["training"] = training_sentences()
    for name, sentences in files.items():
        lines = "".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences)
        (output / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
