"""The tokenizer that a GGUF file describes, for tokenizer.json."""

from __future__ import annotations

from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"  # SentencePiece's


def tokenizer_of(values: dict[str, Any]) -> Tokenizer:
    """From a file's metadata; raises ValueError for a kind that is not known here."""
    kind = values["tokenizer.ggml.model"], values.get("tokenizer.ggml.pre")
    if kind == ("gpt2", "smollm"):
        tokenizer = _byte_level(values)
    elif kind[0] == "llama" and values["general.architecture"] == "gemma3":
        tokenizer = _sentence_piece(values)
    else:
        raise ValueError(f"the tokenizer is {kind}: neither SmolLM's nor Gemma's")
    _add_tokens(tokenizer, values)
    return tokenizer


def _byte_level(values: dict[str, Any]) -> Tokenizer:
    """SmolLM's: of bytes, digits alone."""
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(_vocabulary(values), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(values: dict[str, Any]) -> Tokenizer:
    """Gemma's: of characters, words with the space in front, bytes for what it lacks."""
    vocabulary = _vocabulary(values)
    unknown = values["tokenizer.ggml.tokens"][values["tokenizer.ggml.unknown_token_id"]]
    merges = _merges(vocabulary, values["tokenizer.ggml.scores"])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _vocabulary(values: dict[str, Any]) -> dict[str, int]:
    return {token: place for place, token in enumerate(values["tokenizer.ggml.tokens"])}


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a token together of two others, the tokens of the best score first."""
    found = []
    for token, place in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[place], place, left, right, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, values: dict[str, Any]) -> None:
    """Tokens that are whole wherever they stand, and the first of every text where the file wants one."""
    tokens = values["tokenizer.ggml.tokens"]
    for token, kind in zip(tokens, values["tokenizer.ggml.token_type"], strict=True):
        if kind == TokenType.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if values.get("tokenizer.ggml.add_bos_token", False):
        place = values["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[place]} $A", pair=f"{tokens[place]} $A $B", special_tokens=[(tokens[place], place)]
        )
