"""What the files beside a model say about it: the first token of a text, the longest text."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "context_length")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """None where no file says it."""

    first_token: int | None
    longest: int | None  # tokens


def read_settings(folder: Path | None) -> ModelSettings:
    """From genai_config.json, generation_config.json and config.json in the folder of the model.

    They are hints: a file that cannot be read is logged and left aside.
    """
    first_token = longest = None
    for name in ("genai_config.json", "generation_config.json", "config.json"):
        for section in _sections(folder / name if folder is not None else None):
            if first_token is None:
                first_token = _integer(section.get("bos_token_id"))
            for key in _LENGTH_KEYS:
                if longest is None:
                    longest = _integer(section.get(key))
    return ModelSettings(first_token, longest)


def _sections(path: Path | None) -> list[dict[str, Any]]:
    """The file's object and the objects in it that describe the text model."""
    if path is None or not os.path.isfile(path):
        return []
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("%s is left aside: %s", path, error)
        return []
    found = [settings] + [settings.get(key) for key in ("model", "text_config")] if isinstance(settings, dict) else []
    return [section for section in found if isinstance(section, dict)]


def _integer(value: Any) -> int | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int and value >= 0 else None
