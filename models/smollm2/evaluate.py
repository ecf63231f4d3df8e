"""What conversions leave of a language model, on texts of several kinds, and what it writes.

    python -m models.smollm2.evaluate smollm2.onnx smollm2.dyisru.onnx --text FOLDER

reads every test_KIND.txt of the folder that models.smollm2.text writes and compares each converted file with the
original on windows spread over the text: the losses and the KL divergence by kind and by position, where the
divergence is worst, and what both go on to write. The tokenizer is tokenizer.json beside the original.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import dynorm_onnx
from dynorm_onnx.runtime.measures import TokenSums
from models.smollm2.continuations import Continuation, continued, feeds_of, prompts
from models.smollm2.tables import show

# The first token carries the massive value; the next ones have little context beside it.
POSITIONS = {"first token": (0, 1), "tokens 1 to 7": (1, 8), "others": (8, None)}
WORST = 8
CONTEXT = 12  # tokens shown in front of a worst one


@dataclasses.dataclass(frozen=True)
class Text:
    """Windows of one kind of text, [windows, length] token ids."""

    kind: str
    windows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One number for each token of a text's windows, in order, for one converted file."""

    kl: np.ndarray
    agree: np.ndarray
    before: np.ndarray  # loss of the original, nats; NaN for the last token of a window
    after: np.ndarray
    position: np.ndarray

    @classmethod
    def of(cls, original: np.ndarray, converted: np.ndarray, ids: np.ndarray) -> Tokens:
        """From the logits [1, length, vocabulary] of a window's ids [length]."""
        sums = TokenSums.of(original, converted, None, ids[None])
        losses = [np.append(loss, np.nan) for loss in (sums.loss_original, sums.loss_converted)]
        return cls(sums.kl, sums.agree.astype(bool), *losses, sums.position)

    @classmethod
    def joined(cls, parts: list[Tokens]) -> Tokens:
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))

    def within(self, first: int, end: int | None) -> Tokens:
        """Those of the positions first <= position < end."""
        chosen = (self.position >= first) & (self.position < (math.inf if end is None else end))
        return Tokens(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    def summary(self) -> dict[str, float]:
        """The measures over all of them."""
        return {
            "tokens": self.kl.size,
            "loss_before": float(np.nanmean(self.before)),
            "loss_after": float(np.nanmean(self.after)),
            "kl_mean": float(self.kl.mean()),
            "kl_median": float(np.median(self.kl)),
            "kl_p99": float(np.quantile(self.kl, 0.99, method="higher")),
            "top1": float(self.agree.mean()),
        }


def spread(ids: np.ndarray, count: int, length: int) -> np.ndarray:
    """[count, length]: windows spread evenly over a text's token ids, none of which overlap.

    Raises ValueError where the text is too short for that.
    """
    if ids.size < count * length:
        raise ValueError(f"{count} windows of {length} tokens need {count * length:,}; the text has {ids.size:,}")
    starts = np.linspace(0, ids.size - length, count).astype(int)
    return np.stack([ids[start : start + length] for start in starts])


def read_texts(folder: Path, tokenizer: Tokenizer, count: int, length: int) -> list[Text]:
    """The windows of every test_KIND.txt in the folder, by kind; each begins with what the tokenizer begins a text."""
    texts = []
    prefix = np.array(tokenizer.encode("").ids, np.int64)
    for path in sorted(folder.glob("test_*.txt")):
        ids = np.array(tokenizer.encode(path.read_text(), add_special_tokens=False).ids, np.int64)
        rows = spread(ids, count, length - prefix.size)
        texts.append(Text(path.stem.removeprefix("test_"), np.hstack([np.tile(prefix, (count, 1)), rows])))
    if not texts:
        raise FileNotFoundError(f"{folder}: no test_*.txt; python -m models.smollm2.text writes them")
    return texts


def compared(original: Any, converted: list[Any], windows: np.ndarray) -> list[Tokens]:
    """For each converted session, what became of the windows; the logits of one window are held at a time."""
    parts: list[list[Tokens]] = [[] for _ in converted]
    for ids in windows:
        (before,) = original.run(["logits"], feeds_of(original, ids))
        for session, found in zip(converted, parts, strict=True):
            (after,) = session.run(["logits"], feeds_of(session, ids))
            found.append(Tokens.of(before, after, ids))
    return [Tokens.joined(found) for found in parts]


def measures(texts: list[Text], tokens: list[Tokens], tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything about one converted file but what it writes; `tokens` in the order of `texts`."""
    together = Tokens.joined(tokens)
    by_position = {name: together.within(*bounds) for name, bounds in POSITIONS.items()}
    return {
        "all": together.summary(),
        "kinds": {text.kind: found.summary() for text, found in zip(texts, tokens, strict=True)},
        "positions": {name: part.summary() for name, part in by_position.items() if part.kl.size},
        "worst": list(worst(texts, tokens, tokenizer)),
    }


def worst(texts: list[Text], tokens: list[Tokens], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The tokens behind which the divergence is largest, with the text in front of them."""
    kl = np.concatenate([found.kl for found in tokens])
    windows = np.concatenate([text.windows for text in texts])
    for place in np.argsort(-kl, kind="stable")[:WORST]:
        window, position = divmod(int(place), windows.shape[1])
        text, within = divmod(window, len(texts[0].windows))
        seen = windows[window, max(0, position + 1 - CONTEXT) : position + 1].tolist()
        yield {
            "kind": texts[text].kind,
            "window": within,
            "position": position,
            "kl": float(kl[place]),
            "text": tokenizer.decode(seen, skip_special_tokens=False),
        }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The measures of every converted file by its name, and the continuations of all."""
    tokenizer = Tokenizer.from_file(str(args.tokenizer or args.original.parent / "tokenizer.json"))
    texts = read_texts(args.text, tokenizer, args.windows, args.length)
    files = [args.original, *args.converted]
    original, *converted = (dynorm_onnx.session(path, args.provider, threads=args.threads) for path in files)
    by_text = [compared(original, converted, text.windows) for text in texts]
    found = {
        path.name: measures(texts, [tokens[place] for tokens in by_text], tokenizer)
        for place, path in enumerate(args.converted)
    }
    written: list[Continuation] = []
    if args.new_tokens:
        sessions = {path.name: session for path, session in zip(files, [original, *converted], strict=True)}
        written = [continued(sessions, tokenizer, *prompt, args.new_tokens) for prompt in prompts(tokenizer)]
    return {"files": found, "continuations": [dataclasses.asdict(continuation) for continuation in written]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("converted", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True, help="the folder with test_KIND.txt")
    parser.add_argument("--tokenizer", type=Path, help="default: tokenizer.json beside the original")
    parser.add_argument("--windows", type=int, default=8, help="of each kind of text (%(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window (%(default)s)")
    parser.add_argument(
        "--new-tokens", type=int, default=32, help="how far prompts are continued, 0: not (%(default)s)"
    )
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime within an operator")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    args = parser.parse_args()
    found = evaluate(args)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
