"""What a conversion is asked to do: ConvertConfig, checked before anything is read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from dynorm_onnx.errors import UsageError

METHODS = ("reconstruct", "fit", "distil")
TRAIN = ("norms", "all")
SAMPLES = {"distil": 2048, "rmsnorm": 16}  # by default, where a method wants more; to prove a rewrite wants few
PROVIDERS = ("cpu", "cuda")
OPTIMIZE = ("auto", "none", "ort")


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """The knobs of one conversion; the command line's options by the same names.

    Raises UsageError, naming knob and value, for a value that makes no sense.
    """

    model: Path
    to: str = "dyisru"  # a function of the registry, or "rmsnorm"
    output: Path | None = None  # default: MODEL.dyisru.onnx beside the model
    data: Any = None  # a path, an iterable of feeds, a CalibrationDataReader, or None
    tokenizer: Path | None = None
    samples: int = 256
    max_length: int = 256
    method: str = "reconstruct"
    coupled: int | None = None  # at most how many channels stay in each norm's sum; None: as many as the model needs
    steps: int = 600  # batches of about 2,048 tokens that "distil" trains on
    learning_rate: float = 0.003  # of "distil", relative to each weight's root mean square
    train: str = "all"  # what it trains: "norms", the parameters of the functions, or "all" weights
    block_steps: int = 0  # that it trains each block by itself before
    checkpoint: Path | None = None  # of an interrupted run; default: OUTPUT.distil.pt of "distil", OUTPUT.calibration
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    max_kl: float | None = None
    max_error: float | None = None
    rotate: bool = True  # streams that functions of single channels suit badly, before "fit" and "reconstruct"
    fold: bool = True  # centring into the weights upstream, where that is exact
    fold_weights: bool = False  # the replacements' weights into the layers that read them
    inline: bool = False  # write standard operators only, no functions
    optimize: str = "auto"  # "ort": fuse attention and the like for ONNX Runtime before converting; "auto": if exact
    custom_op_library: tuple[Path, ...] = ()  # of the model's own operators, registered in every session
    provider: str = "cpu"
    validate: bool = True
    time: bool = True
    dry_run: bool = False
    report: Path | None = None  # an HTML page for people; needs the [report] extra
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("--method", self.method, METHODS)
        check_choice("--optimize", self.optimize, OPTIMIZE)
        check_choice("--provider", self.provider, PROVIDERS)
        _at_least("--samples", self.samples, 2)  # one to calibrate with, one to validate on
        _at_least("--max-length", self.max_length, 1)
        _at_least("--steps", self.steps, 1)
        if self.coupled is not None:
            _at_least("--coupled", self.coupled, 0)
        _at_least("--block-steps", self.block_steps, 0)
        check_choice("--train", self.train, TRAIN)
        if self.report is not None and self.report.absolute() in (self.model.absolute(), self.output_path.absolute()):
            raise UsageError(f"--report {self.report} is the file of a model; name another")
        if self.inline and self.optimize == "ort":
            raise UsageError(
                "--inline writes standard operators only, and --optimize ort fuses into ONNX Runtime's own: leave out "
                "one of them"
            )
        _above_zero("--learning-rate", self.learning_rate)
        for knob, bound in (("--max-kl", self.max_kl), ("--max-error", self.max_error)):
            if bound is not None:
                _above_zero(knob, bound)
            if bound is not None and not self.validate:
                raise UsageError(f"{knob} {bound} needs validation: leave out --no-validate")

    @property
    def output_path(self) -> Path:
        """Where the converted model goes."""
        return self.output or self.model.with_name(f"{self.model.stem}.{self.to}.onnx")

    @property
    def is_bounded(self) -> bool:
        """Whether norms may be kept for a bound on the error."""
        return self.max_kl is not None or self.max_error is not None

    @property
    def is_exact(self) -> bool:
        """Whether norms are only rewritten, so that nothing is fitted."""
        return self.to == "rmsnorm"

    @property
    def distils(self) -> bool:
        """Whether the model is trained; nothing is where it is rewritten exactly."""
        return self.method == "distil" and not self.is_exact

    @property
    def fuses(self) -> bool:
        """Whether the model may be fused for ONNX Runtime first: not on its own account where standard operators are
        wanted, where nothing but what the norms are written with is to change, or where norms are only listed."""
        return self.optimize == "ort" or (
            self.optimize == "auto" and not (self.inline or self.dry_run or self.is_exact)
        )

    @property
    def calibration_path(self) -> Path:
        """The folder where an interrupted calibration goes on from; of a training, which has a checkpoint of its own,
        beside that."""
        if self.checkpoint is not None and not self.distils:
            return self.checkpoint
        beside = self.checkpoint or self.output_path
        return beside.with_name(f"{beside.name}.calibration")

    @property
    def checkpoint_path(self) -> Path:
        """Where an interrupted distillation goes on from."""
        return self.checkpoint or self.output_path.with_name(f"{self.output_path.name}.distil.pt")

    @classmethod
    def of(cls, model: str | os.PathLike[str], **knobs: Any) -> ConvertConfig:
        """A config from Python arguments: paths may be strings, patterns single strings."""
        if knobs.get("samples") is None:
            wants = knobs.get("to") if knobs.get("to") in SAMPLES else knobs.get("method")
            knobs["samples"] = SAMPLES.get(str(wants), cls.samples)
        for name in ("output", "tokenizer", "checkpoint", "report"):
            if knobs.get(name) is not None:
                knobs[name] = Path(knobs[name])
        for name in ("only", "keep"):
            patterns = knobs.get(name, ())
            knobs[name] = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        files = knobs.get("custom_op_library", ())
        knobs["custom_op_library"] = tuple(map(Path, [files] if isinstance(files, str | os.PathLike) else files))
        unknown = sorted(set(knobs) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"convert_model() has no argument {unknown[0]!r}")
        return cls(Path(model), **knobs)


def check_choice(knob: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UsageError where value is not one of the choices."""
    if value not in choices:
        raise UsageError(f"{knob} {value!r} is not one of {', '.join(choices)}")


def _above_zero(knob: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{knob} must be positive, not {value}")


def _at_least(knob: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{knob} must be at least {least}, not {value}")
