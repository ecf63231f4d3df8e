"""Every error message of the package has a row in tests/error_messages.py, and each row a test that provokes it.

A message is what is given to one of our errors where it is made: `raise UsageError(f"{knob} must be ...")`. Rows name
it by a fragment of its own. Each says either the test that provokes it, which must speak of it, or is a function of
provoked_errors.py that does. A new message without a row fails below: the failure is the row to add.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from dynorm_onnx import errors
from tests.error_messages import TABLE, UNPROVOKED
from tests.provoked_errors import PROVOKED

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "dynorm_onnx", ROOT / "tests"
CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
MADE_BY = {**CLASSES, "unsupported": errors.ModelError, "ArgumentTypeError": argparse.ArgumentTypeError}
HOLE = "…"  # in a message: what is only known when it is raised
SHORTEST = 9  # letters that a test and a message have in common, where the message has so many


@dataclasses.dataclass(frozen=True)
class Message:
    """A message as it stands in a file: `texts` are its alternatives."""

    file: str
    line: int
    error: type[Exception]
    texts: tuple[str, ...]

    def has(self, fragment: str) -> bool:
        return any(fragment in text for text in self.texts)

    def fits(self, said: str) -> bool:
        patterns = (".*".join(re.escape(part) for part in text.split(HOLE)) for text in self.texts)
        return any(re.search(pattern, said, re.DOTALL) for pattern in patterns)

    def __str__(self) -> str:
        return f'{self.file}:{self.line}: "{self.texts[0]}"'


def texts_of(node: ast.expr) -> tuple[str, ...]:
    """What an expression can become, holes where that is not known."""
    if isinstance(node, ast.Constant):
        return (str(node.value),)
    if isinstance(node, ast.IfExp):
        return (*texts_of(node.body), *texts_of(node.orelse))
    if isinstance(node, ast.JoinedStr):
        return ("".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values),)
    return (HOLE,)


@functools.cache
def messages() -> tuple[Message, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in MADE_BY:
                file = path.relative_to(PACKAGE).as_posix()
                found.append(Message(file, node.lineno, MADE_BY[name], texts_of(node.args[0])))
    return tuple(found)


def rows() -> list[tuple[str, str]]:
    tables: tuple[Mapping[str, Mapping[str, object]], ...] = (TABLE, PROVOKED, UNPROVOKED)
    return [(file, fragment) for table in tables for file, fragments in table.items() for fragment in fragments]


def named_by(file: str, fragment: str) -> list[Message]:
    return [message for message in messages() if message.file == file and message.has(fragment)]


def test_every_message_has_one_row() -> None:
    counts = {message: 0 for message in messages()}
    for row in rows():
        for message in named_by(*row):
            counts[message] += 1
    without = [str(message) for message, count in counts.items() if count == 0]
    assert not without, "messages without a row in tests/error_messages.py:\n" + "\n".join(without)
    several = [str(message) for message, count in counts.items() if count > 1]
    assert not several, "messages with several rows:\n" + "\n".join(several)


@pytest.mark.parametrize(("file", "fragment"), rows())
def test_every_row_names_one_message(file: str, fragment: str) -> None:
    named = named_by(file, fragment)
    assert named, f"{file} has no message with {fragment!r}: remove the row, or mend it"
    assert len({message.texts for message in named}) == 1, f"{fragment!r} names several: {[*map(str, named)]}"


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    """The tests of a file by name; methods as Class::name."""
    found: dict[str, ast.FunctionDef] = {}
    for node in tree_of(path).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + member.name: member for member in members if isinstance(member, ast.FunctionDef)}
    return found


def literals(path: Path, test: str) -> set[str]:
    """The strings of a test, of its decorators, and of the constants of its file that it names."""
    function = functions_of(path)[test]
    names = names_in(function)
    constants = [node for node in tree_of(path).body if isinstance(node, ast.Assign) and names & names_in(node)]
    nodes = (node for part in (function, *constants) for node in ast.walk(part))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def spoken(said: str, text: str) -> int:
    """Letters of the longest piece of `text`, between its holes, that a literal, or a regular expression, has in it."""
    plain = re.split(r"\.[*+]|…", re.sub(r"\\(.)", r"\1", said))
    best = 0
    for piece in text.split(HOLE):
        for part in plain:
            for start in range(len(part)):
                while part[start : start + best + 1] in piece and start + best < len(part):
                    best += 1
    return best


@pytest.mark.parametrize(("file", "fragment", "test"), [
    (file, fragment, test) for file, fragments in TABLE.items() for fragment, test in fragments.items()
])  # fmt: skip
def test_the_test_of_a_row_is_there_and_speaks_of_its_message(file: str, fragment: str, test: str) -> None:
    name, _, function = test.partition("::")
    path = TESTS / name
    assert path.is_file() and function in functions_of(path), f"there is no test {test}"
    for message in named_by(file, fragment):
        wanted = min(SHORTEST, max(len(piece) for text in message.texts for piece in text.split(HOLE)))
        heard = max(spoken(said, text) for said in literals(path, function) for text in message.texts)
        assert heard >= wanted, f"{test} says nothing of {message}"


@pytest.mark.parametrize(("file", "fragment"), [(f, fragment) for f in PROVOKED for fragment in PROVOKED[f]])
def test_a_message_is_provoked(file: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (message, *_) = named_by(file, fragment)
    with pytest.raises(message.error) as caught:
        PROVOKED[file][fragment](tmp_path, monkeypatch)
    assert type(caught.value) is message.error and message.fits(str(caught.value))
    assert any(Path(str(entry.path)) == PACKAGE / file for entry in caught.traceback)
