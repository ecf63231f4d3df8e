"""What language models write: greedy continuations of prompts, plain ones and ones in the form of a chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

PLAIN = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees, and it freezes at",
)
ASKED = (
    "What is gravity? Answer in one sentence.",
    "Give three names for a cat.",
    "Which is larger, 9 or 12?",
)
# By the token that begins a turn: the form of a chat, and the token that ends an answer.
CHATS = {
    "<|im_start|>": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "<start_of_turn>": (
        "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
}
ENDS = ("<|endoftext|>", "<eos>")


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A prompt, and by the name of a model what it goes on with and how many tokens of that are the first model's."""

    asked: str  # in a chat the question alone
    prompt: str
    written: dict[str, str]
    same: dict[str, int]


def prompts(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(what is asked, the whole prompt): plain ones, then chats in the form that the special tokens tell, if one."""
    yield from ((text, text) for text in PLAIN)
    for token, (form, _) in CHATS.items():
        if tokenizer.token_to_id(token) is not None:
            yield from ((question, form.format(question)) for question in ASKED)


def continued(sessions: Mapping[str, Any], tokenizer: Tokenizer, asked: str, prompt: str, most: int) -> Continuation:
    """What each session makes of a prompt, at most `most` tokens; the first is what the others are compared with."""
    ids = tokenizer.encode(prompt).ids
    ends = {tokenizer.token_to_id(token) for token in (*ENDS, *(end for _, end in CHATS.values()))}
    found = {name: greedy(session, ids, most, ends) for name, session in sessions.items()}
    first = next(iter(found.values()))
    return Continuation(
        asked,
        prompt,
        {name: tokenizer.decode(new, skip_special_tokens=False) for name, new in found.items()},
        {name: in_common(first, new) for name, new in found.items()},
    )


def greedy(session: Any, ids: list[int], most: int, ends: set[int | None]) -> list[int]:
    """The most probable token, again and again, until one of `ends` or `most` tokens."""
    new: list[int] = []
    while len(new) < most and not (new and new[-1] in ends):
        (logits,) = session.run(["logits"], feeds_of(session, np.array([*ids, *new], np.int64)))
        new.append(int(logits[0, -1].argmax()))
    return new


def in_common(first: list[int], second: list[int]) -> int:
    """How many tokens two lists have in common before they part."""
    differ = [place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    return differ[0] if differ else min(len(first), len(second))


def feeds_of(session: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """One sequence of token ids [length] as the inputs that a session asks for."""
    inputs = {
        "input_ids": ids[None],
        "attention_mask": np.ones_like(ids)[None],
        "position_ids": np.arange(len(ids))[None],
    }
    return {value.name: inputs[value.name] for value in session.get_inputs()}
