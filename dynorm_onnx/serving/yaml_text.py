"""YAML of plain Python values: mappings, lists, strings, numbers and booleans, in block style.

Strings are written as JSON writes them wherever a plain one could be read as something else: JSON's are YAML's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9 ./_-]*(?<! )")  # nothing that YAML gives a meaning to
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def yaml_documents(objects: Sequence[Mapping[str, Any]]) -> str:
    """One document for each object."""
    return "---\n".join("".join(f"{line}\n" for line in _lines(each)) for each in objects)


def _lines(value: Any) -> Iterator[str]:
    """A mapping or list that is not empty, line by line."""
    entries = [(f"{_scalar(key)}:", item) for key, item in value.items()] if isinstance(value, Mapping) else None
    for label, item in entries if entries is not None else [("-", item) for item in value]:
        if isinstance(item, Mapping | list) and item:
            inner = _lines(item)
            if label == "-":  # the first line stands behind the dash
                yield f"- {next(inner)}"
            else:
                yield label
            yield from (f"  {line}" for line in inner)
        else:
            yield f"{label} {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
