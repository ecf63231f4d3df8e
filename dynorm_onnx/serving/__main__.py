"""The command line of serving: folders and manifests for servers, and how fast these answer.

    python -m dynorm_onnx.serving triton model.dyisru.onnx -o models --name lm
    python -m dynorm_onnx.serving genai FOLDER -o FOLDER.dyisru
    python -m dynorm_onnx.serving ray model.dyisru.onnx -o APP
    python -m dynorm_onnx.serving kubernetes models -o triton.yaml
    python -m dynorm_onnx.serving kserve models -o inference_service.yaml
    python -m dynorm_onnx.serving bench triton lm
    python -m dynorm_onnx.serving bench genai FOLDER FOLDER.dyisru

Exit codes are those of dynorm_onnx.convert.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynorm_onnx.config import METHODS, PROVIDERS, ConvertConfig
from dynorm_onnx.conversion.convert_model import TARGETS
from dynorm_onnx.errors import DataError, DynormError, UsageError
from dynorm_onnx.report import print_report
from dynorm_onnx.runtime.user_libraries import add_option
from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.kserve import inference_service
from dynorm_onnx.serving.kubernetes import IMAGE, Deployment, ScaleOn, triton_manifest
from dynorm_onnx.serving.load import PROTOCOLS, measure_latency
from dynorm_onnx.serving.model_files import DEFAULT_BATCH
from dynorm_onnx.serving.ray_serve import LISTEN, RayDeployment, write_ray_application
from dynorm_onnx.serving.speed import measure_speed
from dynorm_onnx.serving.triton import BACKENDS, HOST_REPOSITORY, write_triton_model
from dynorm_onnx.serving.yaml_text import yaml_documents
from dynorm_onnx.terminal import log_handler, print_error, use_safe_streams

_FILE_WIDTH = 120


def main(arguments: Sequence[str] | None = None, prog: str = "python -m dynorm_onnx.serving") -> int:
    """Run the command line; returns the exit code."""
    use_safe_streams()
    options = vars(_parser(prog).parse_args(arguments))
    errors = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[log_handler(errors)])
    command = options.pop("command")
    try:
        command(options, errors)
    except DynormError as error:
        print_error(errors, f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    return 0


def _triton(options: dict[str, Any], errors: Console) -> None:
    print(write_triton_model(options.pop("model"), options.pop("output"), **options))


def _genai(options: dict[str, Any], errors: Console) -> None:
    as_json = options.pop("json")
    with errors.status("find") as status:
        report = convert_genai_folder(
            options.pop("folder"),
            options.pop("output"),
            progress=lambda step, done, total: status.update(f"{step} {done}/{total}" if total else step),
            **options,
        )
    if as_json:
        print(json.dumps(report.as_dict(), allow_nan=False))
    else:
        print_report(report, _stdout())


def _ray(options: dict[str, Any], errors: Console) -> None:
    fields = {field.name for field in dataclasses.fields(RayDeployment)} & set(options)
    options["replicas"] = tuple(options["replicas"])
    deployment = RayDeployment(**{name: options.pop(name) for name in fields})
    print(write_ray_application(options.pop("model"), options.pop("output"), deployment=deployment, **options))


def _kubernetes(options: dict[str, Any], errors: Console) -> None:
    repository, output = options.pop("repository"), options.pop("output")
    least, most = options.pop("replicas")
    options["scale_on"] = ScaleOn.parse(options["scale_on"])
    objects = options.pop("objects")
    text = yaml_documents(objects(repository, Deployment(replicas=(least, most), **options)))
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror or error}.") from error
    print(output)


def _bench_triton(options: dict[str, Any], errors: Console) -> None:
    as_json, file = options.pop("json"), options.pop("feeds")
    with errors.status("asking"):
        rows = measure_latency(options.pop("models"), feeds=_feeds(file) if file else None, **options)
    _show("Requests to Triton", [dataclasses.asdict(row) for row in rows], as_json)


def _bench_genai(options: dict[str, Any], errors: Console) -> None:
    as_json, prompt = options.pop("json"), options.pop("prompt")
    with errors.status("generating"):
        rows = measure_speed(options.pop("folders"), prompt, **options)
    _show("Greedy generation", [dataclasses.asdict(row) for row in rows], as_json)


def _feeds(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as an .npz of arrays by input name: {error}") from error


def _show(title: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(list(rows), allow_nan=False))
        return
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    _stdout().print(table)


def _stdout() -> Console:
    """As wide as the terminal; wide enough for every column where there is none (a file, a pipe)."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Write what servers load, and measure how fast they answer."
    )
    commands = parser.add_subparsers(required=True, metavar="{triton,genai,ray,kubernetes,kserve,bench}")
    _add_triton(commands.add_parser("triton", help="an ONNX model as a model of a Triton repository"))
    _add_genai(commands.add_parser("genai", help="convert the decoder of an ONNX Runtime GenAI folder"))
    _add_ray(commands.add_parser("ray", help="an ONNX model as an application of Ray Serve"))
    kubernetes = commands.add_parser("kubernetes", help="a manifest that serves a Triton repository")
    _add_kubernetes(kubernetes, triton_manifest)
    kserve = commands.add_parser("kserve", help="an InferenceService of KServe that serves a Triton repository")
    _add_kubernetes(kserve, inference_service)
    bench = commands.add_parser("bench", help="latency in a running Triton, tokens per second of GenAI folders")
    kinds = bench.add_subparsers(required=True, metavar="{triton,genai}")
    _add_bench_triton(kinds.add_parser("triton", help="latency quantiles under concurrent requests"))
    _add_bench_genai(kinds.add_parser("genai", help="tokens per second, greedily"))
    return parser


def _add_triton(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_triton)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx")
    add("-o", "--output", type=Path, required=True, metavar="REPO", help="the model repository")
    add("--name", help="of the model in the server (default: the file's)")
    add("--backend", choices=BACKENDS, default=BACKENDS[0], help="(%(default)s)")
    add("--provider", choices=PROVIDERS, default="cpu", help="where instances run (%(default)s)")
    add("--instances", type=int, default=1, help="copies that answer side by side (%(default)s)")
    _add_batching(add)
    add(
        "--max-memory-mib",
        type=int,
        metavar="N",
        help="refuse requests that want more, of each instance on the CPU; 0: none (default: what the host has free)",
    )
    add("--threads", type=int, default=0, metavar="N", help="within an operator; 0: ONNX Runtime's choice")
    add(
        "--host-repository",
        default=HOST_REPOSITORY,
        metavar="PATH",
        help="where REPO is in the serving host: Triton loads the library by this path (%(default)s)",
    )
    _add_no_library(parser)


def _add_genai(parser: argparse.ArgumentParser) -> None:
    defaults = {name: field.default for name, field in ConvertConfig.__dataclass_fields__.items()}
    parser.set_defaults(command=_genai)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="with genai_config.json")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the new folder")
    add("--to", choices=TARGETS, default=defaults["to"], help="what replaces a norm (%(default)s)")
    add("--data", type=Path, help=".npz, a folder of .npz, .jsonl or .txt; default: self-written text")
    add("--tokenizer", type=Path, metavar="tokenizer.json", help="default: the folder's own")
    add("--samples", type=int, default=defaults["samples"], help="samples used (%(default)s)")
    add("--max-length", type=int, default=defaults["max_length"], help="tokens a sample (%(default)s)")
    add("--method", choices=METHODS, default=defaults["method"], help="(%(default)s)")
    for knob, effect in (("--only", "replace only sites that match"), ("--keep", "leave sites that match")):
        add(knob, action="append", default=[], metavar="PATTERN", help=f"{effect}: a glob or re:..., repeatable")
    add("--no-rotate", dest="rotate", action="store_false", help="leave the streams in their own bases")
    add("--inline", action="store_true", help="write standard operators only; the library is left out")
    add("--max-kl", type=float, metavar="X", help="write nothing above this mean KL, nats")
    add("--max-error", type=float, metavar="X", help="write nothing above this relative error")
    add("--provider", choices=PROVIDERS, default=defaults["provider"], help="to convert on (%(default)s)")
    add("--no-validate", dest="validate", action="store_false", help="skip the comparison")
    add("--no-time", dest="time", action="store_false", help="skip the timing")
    add("--seed", type=int, default=defaults["seed"], help="of everything random (%(default)s)")
    _add_no_library(parser)
    _add_json(parser)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    defaults = RayDeployment()
    parser.set_defaults(command=_ray)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx")
    add("-o", "--output", type=Path, required=True, metavar="APP", help="the new folder, with serve.yaml")
    add("--name", help="of the model in the server (default: the file's)")
    add("--provider", choices=PROVIDERS, default=defaults.provider, help="cuda: one GPU a replica (%(default)s)")
    add("--cpus", type=float, default=defaults.cpus, metavar="N", help="set aside for each replica (%(default)s)")
    add("--threads", type=int, metavar="N", help="within an operator; default: --cpus, 0: ONNX Runtime's choice")
    add("--replicas", type=int, nargs=2, default=defaults.replicas, metavar=("LEAST", "MOST"), help="(1 4)")
    add(
        "--queue-length",
        type=float,
        metavar="N",
        help="requests for each replica, running and waiting, that replicas are added above; default: the batch size",
    )
    _add_batching(add)
    add("--listen", type=_address, default=LISTEN, metavar="HOST:PORT", help="of HTTP on every node (0.0.0.0:8000)")
    add("--host-folder", metavar="PATH", help="where APP is on every node (default: where it is written)")
    _add_no_library(parser)


def _add_kubernetes(parser: argparse.ArgumentParser, objects: Callable[..., list[dict[str, Any]]]) -> None:
    defaults = Deployment()
    parser.set_defaults(command=_kubernetes, objects=objects)
    add = parser.add_argument
    add("repository", type=Path, metavar="REPO", help="a Triton model repository, as `triton` writes it")
    add("-o", "--output", type=Path, metavar="FILE.yaml", help="default: stdout")
    add("--name", default=defaults.name, help="of all objects (%(default)s)")
    add("--namespace", help="default: the one of the context")
    add("--image", default=IMAGE, help="(%(default)s)")
    add("--claim", metavar="NAME", help="the PersistentVolumeClaim that holds REPO; default: REPO is in the image")
    add("--host-repository", default=HOST_REPOSITORY, metavar="PATH", help="where REPO is in the pod (%(default)s)")
    add("--replicas", type=int, nargs=2, default=defaults.replicas, metavar=("LEAST", "MOST"), help="(1 4)")
    add("--cpu", default=defaults.cpu, help="requested by each replica (%(default)s)")
    add("--memory", default=defaults.memory, help="of each replica (%(default)s)")
    add("--gpus", type=int, default=defaults.gpus, help="of each replica (%(default)s)")
    add("--scale-on", default="cpu=70", metavar="METRIC=TARGET", help="cpu=PERCENT, or a metric of pods (%(default)s)")


def _add_bench_triton(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_bench_triton)
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME", help="models of the server, asked in turn")
    add("--protocol", choices=tuple(PROTOCOLS), default="grpc", help="(%(default)s)")
    add("--url", metavar="HOST:PORT", help="default: Triton's own port on this machine")
    add("--feeds", type=Path, metavar="FILE.npz", help="arrays by input name; default: drawn")
    add("--shape", type=_shape, default=(1, 128), metavar="BxT", help="free axes of drawn inputs (1x128)")
    add("--below", type=_positive, default=256, metavar="N", help="drawn integers are below (%(default)s)")
    add("--concurrency", type=_positive, default=4, metavar="N", help="requests under way at once (%(default)s)")
    add("--seconds", type=float, default=5.0, metavar="S", help="for each model (%(default)s)")
    _add_json(parser)


def _add_bench_genai(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_bench_genai)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="GenAI folders, in turn")
    add("--prompt", default="def main():\n", help="text that is continued (%(default)r)")
    add("--tokens", type=_positive, default=128, metavar="N", help="generated in each run (%(default)s)")
    add("--runs", type=_positive, default=7, metavar="N", help="(%(default)s)")
    _add_json(parser)


def _add_batching(add: Callable[..., Any]) -> None:
    add(
        "--max-batch-size",
        type=int,
        metavar="N",
        help=f"default: {DEFAULT_BATCH} where all inputs and outputs share a named free first axis, else 0: no batches",
    )
    add("--max-delay-us", type=int, default=100, metavar="US", help="a request waits for others (%(default)s)")
    add(
        "--max-length",
        type=int,
        default=0,
        metavar="N",
        help="refuse requests with a longer free axis, samples aside; 0: none",
    )


def _add_no_library(parser: argparse.ArgumentParser) -> None:
    add_option(parser)
    parser.add_argument("--no-library", dest="library", action="store_false", help="run by the function bodies")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on stdout and nothing else")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _shape(text: str) -> tuple[int, int]:
    batch, _, length = text.lower().partition("x")
    return _positive(batch), _positive(length)


if __name__ == "__main__":
    sys.exit(main())
