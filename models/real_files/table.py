"""The table of files as Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence

from models.real_files.catalogue import BY_NAME, FILES, RealFile
from models.real_files.outcome import FileOutcome, Outcome, faults

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime")
HEAD = (
    "file", "package", "MB", "norms", "found", "refused", "near misses",
    "`rmsnorm`: exit, error", "`dyisru`: exit, error", "measure", "verdict", "seconds",
)  # fmt: skip


def document(outcomes: Sequence[FileOutcome]) -> str:
    """The whole page."""
    notes: dict[str, int] = {}
    rows = [[*HEAD], ["---"] * len(HEAD), *(_row(outcome, notes) for outcome in outcomes)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    bad = {outcome.name: found for outcome in outcomes if (found := faults(outcome))}
    minutes = sum(step.seconds for outcome in outcomes for step in outcome.steps.values()) / 60
    parts = [
        "# Files of other people",
        "<!-- Written by `make real-models`; do not edit. -->",
        f"ONNX files that published packages carry, measured on {datetime.date.today()} with Python "
        f"{platform.python_version()}, {versions}: {len(outcomes)} files, {len(bad)} with a fault, in {minutes:.0f} "
        "minutes of one core.",
        "Every file is downloaded from its registry in the version that is written down (`models/real_files`) and "
        "converted twice with the default method, on real data of the kind that the model was made for: recorded "
        "speech, lines of text, sentences, the bytes of files. No model is for text that it writes, so every one "
        "with norms needs its data.\n\n"
        "- **norms**: RMSNorms and LayerNorms over channels in the file, counted by hand; **found** of them; "
        "**refused** and **near misses** with their reasons in the notes;\n"
        "- **`rmsnorm`**: the exit code, and the worst relative error of any output after this exact rewrite. In files "
        "with int8 activations a value that rounds the other way is a whole step;\n"
        "- **`dyisru`**: the same after `--to dyisru`, on samples that were not calibrated on; **measure**: the worst "
        "agreement of classes, or cosine, where the outputs have one; **verdict**: what the converter itself says of "
        "the result.\n\n"
        "Exit codes: 0 done, 2 refused with the reason, 3 no norm." + _not_run(outcomes),
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        _faults(bad),
        _otherwise(outcomes),
        "## Notes\n\n" + "\n".join(f"{number}. {text}" for text, number in notes.items()),
        "## Data\n\n" + _data(outcomes),
    ]
    return "\n\n".join(parts) + "\n"


def summary(outcome: FileOutcome) -> str:
    """One line for a terminal."""
    return ", ".join(_row(outcome, {})[3:])


def _row(outcome: FileOutcome, notes: dict[str, int]) -> list[str]:
    file, steps = BY_NAME[outcome.name], outcome.steps
    refused = [site for site in (steps["find"].report or {}).get("sites", ()) if site["status"] == "refused"]
    misses = (steps["find"].report or {}).get("near_misses", ())
    kept = [site for site in (steps["dyisru"].report or {}).get("sites", ()) if site["status"] == "kept"]
    return [
        file.name,
        _package(file),
        f"{outcome.size / 1e6:.1f}",
        str(file.norms),
        str(outcome.count("found")),
        _counted(refused, notes),
        _counted(misses, notes),
        _ended(steps["rmsnorm"], notes),
        _ended(steps["dyisru"], notes) + (f", {len(kept)} kept {_marks(kept, notes)}" if kept else ""),
        _measure(steps["dyisru"]),
        _verdict(steps["dyisru"], notes),
        f"{steps['dyisru'].seconds:.0f}",
    ]


def _package(file: RealFile) -> str:
    return file.package if not file.parts else f"{file.parts[0]} and {len(file.parts) - 1} more"


def _counted(places: Sequence[dict[str, str]], notes: dict[str, int]) -> str:
    return f"{len(places)} {_marks(places, notes)}".strip()


def _marks(places: Sequence[dict[str, str]], notes: dict[str, int]) -> str:
    """The notes with the reasons of places, each reason once; commas, for `[1] [2]` would be a link in Markdown."""
    return ", ".join(dict.fromkeys(_mark(place["reason"], notes) for place in places))


def _mark(text: str, notes: dict[str, int]) -> str:
    text = text.replace("|", "\\|")
    return f"[{notes.setdefault(text, len(notes) + 1)}]"


def _ended(done: Outcome, notes: dict[str, int]) -> str:
    code = "stopped" if done.code is None else str(done.code)
    if done.code != 0:
        return f"{code} {_mark(done.said, notes)}"
    return code if done.error is None else f"{code}, {done.error:.2g}"


def _measure(done: Outcome) -> str:
    """The worst over the outputs; agreement says more where an output tells classes."""
    outputs = list((((done.report or {}).get("validation") or {}).get("outputs") or {}).values())
    classes = [output["class_agreement"] for output in outputs if output["class_agreement"] is not None]
    cosines = [output["cosine"] for output in outputs if output["cosine"] is not None]
    if classes:
        return f"{100 * min(classes):.0f} % same class"
    return f"cosine {min(cosines):.3f}" if cosines else ""


def _verdict(done: Outcome, notes: dict[str, int]) -> str:
    report = done.report or {}
    verdict = report.get("verdict")
    marks = ", ".join(_mark(warning, notes) for warning in report.get("warnings", ()))
    if verdict is None:
        return marks
    if verdict["usable"]:
        return f"usable {marks}".strip()
    return ", ".join(filter(None, (f"not usable {_mark('; '.join(verdict['reasons']), notes)}", marks)))


def _not_run(outcomes: Sequence[FileOutcome]) -> str:
    run = {outcome.name for outcome in outcomes}
    missing = [file.name for file in FILES if file.name not in run]
    return f" Not run for this table: {', '.join(missing)}." if missing else ""


def _faults(bad: dict[str, list[str]]) -> str:
    if not bad:
        return "No conversion ended with exit code 1 or a traceback, and none is ruined without a word."
    lines = (f"- **{name}** {fault}" for name, found in bad.items() for fault in found)
    return "## Faults\n\n" + "\n".join(lines)


def _otherwise(outcomes: Sequence[FileOutcome]) -> str:
    """What is no fault, and not as it should be either."""
    lines = []
    for outcome in outcomes:
        norms, seen = BY_NAME[outcome.name].norms, outcome.count("found") + outcome.count("refused")
        if seen != norms:
            lines.append(f"- **{outcome.name}** holds {norms} norms; {seen} are found or refused")
        steps = [step for step, done in outcome.steps.items() if norms and done.code == 2]
        lines += [f"- **{outcome.name}** {step}: refused, though it is fed what it was made for" for step in steps]
    return "\n".join(["## Not converted, or not as they should be", "", *(lines or ["None."])])


def _data(outcomes: Sequence[FileOutcome]) -> str:
    lines = ["| file | network | data |", "| --- | --- | --- |"]
    files = [BY_NAME[outcome.name] for outcome in outcomes]
    lines += [f"| {file.name} | {file.what} | {file.data or 'none: there is no norm'} |" for file in files]
    return "\n".join(lines)
