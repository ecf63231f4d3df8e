"""Compare the sentence embeddings of a converted model with the original's.

    python models/minilm/evaluate.py minilm.onnx minilm.dyisru.onnx --data evaluation.jsonl

An embedding is the mean of the last hidden state over the tokens, of length one, as the model's
authors use it. Printed as JSON: the cosine of each sentence's two embeddings (mean and least), the
Spearman correlation of the similarities of all pairs of sentences, and the share of sentences whose
nearest neighbour stays the same. Nothing of dynorm_onnx is needed: converted files run on any
ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def embeddings(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, sentences: list[str]) -> np.ndarray:
    """[sentences, channels] float64, rows of length one; one sentence at a time, so nothing is padded."""
    rows = []
    for sentence in sentences:
        ids = np.array([tokenizer.encode(sentence).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = session.run(["last_hidden_state"], feeds)
        rows.append(hidden[0].astype(np.float64).mean(0))
    wide = np.stack(rows)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def compare(original: np.ndarray, converted: np.ndarray) -> dict[str, float]:
    """What the module's docstring says, of two arrays from embeddings(), of the same sentences in order."""
    cosine = (original * converted).sum(1)
    similarities, after = original @ original.T, converted @ converted.T
    pairs = np.triu_indices(len(original), 1)
    itself = 2 * np.eye(len(original))
    unchanged = (similarities - itself).argmax(1) == (after - itself).argmax(1)
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "spearman": spearman(similarities[pairs], after[pairs]),
        "nearest_unchanged": float(unchanged.mean()),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two [n] without ties."""
    return float(np.corrcoef(first.argsort().argsort(), second.argsort().argsort())[0, 1])


def read_sentences(path: Path) -> list[str]:
    """The "text" of each line of a .jsonl file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer without the padding that its file asks for: the mean is over real tokens only."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("converted", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="evaluation.jsonl of sentences.py")
    parser.add_argument("--tokenizer", type=Path, help="default: tokenizer.json beside the original")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer or args.original.parent / "tokenizer.json")
    sentences = read_sentences(args.data)
    sessions = [onnxruntime.InferenceSession(model) for model in (args.original, args.converted)]
    print(json.dumps(compare(*(embeddings(session, tokenizer, sentences) for session in sessions)), indent=2))


if __name__ == "__main__":
    main()
