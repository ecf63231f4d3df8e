"""The rules by which a model is called not usable, one by one, and what is advised."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.report import Report, SiteReport, Verdict, print_report
from dynorm_onnx.report.html import render
from dynorm_onnx.report.verdict import badly_fitted, judge
from dynorm_onnx.runtime.measures import OutputError, TokenQuality, WorstToken
from dynorm_onnx.runtime.validate import Validation
from tests.report.pages import Reader

GOOD = OutputError(relative_error=0.1, absolute_error=0.1, cosine=0.99, cosine_min=0.98)
CONFIG = ConvertConfig(Path("m.onnx"), data="text.txt")


def quality(loss: float = 3.1, top1: float = 0.95, kl: float = 0.05) -> TokenQuality:
    return TokenQuality(100, kl, kl, kl, WorstToken(0, 0, kl), top1, 3.0, loss, ())


def language_model(found: TokenQuality | None = None, **outputs: OutputError) -> Validation:
    return Validation(4, {"logits": GOOD, **outputs}, found or quality(), "logits")


def encoder(**errors: OutputError) -> Validation:
    return Validation(4, errors, None)


def site(name: str, error: float | None, status: str = "converted") -> SiteReport:
    return SiteReport(name, "rms", "B3", 8, "FLOAT", status, None, error)  # type: ignore[arg-type]


def changed(**fields: object) -> OutputError:
    return dataclasses.replace(GOOD, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("validation", "reason"),
    [
        (language_model(quality(loss=3.45)), None),
        (language_model(quality(loss=3.55)), "loss rises from 3 to 3.55 nats"),
        (language_model(quality(top1=0.71)), None),
        (language_model(quality(top1=0.69)), "69 % of the tokens"),
        (language_model(quality(kl=math.inf)), "NaN or infinity"),
        (encoder(last_hidden_state=changed(cosine=0.91)), None),
        (encoder(last_hidden_state=changed(cosine=0.89)), "output last_hidden_state: the mean cosine"),
        (encoder(y=changed(relative_error=0.49)), None),
        (encoder(y=changed(relative_error=0.51)), "output y: the relative error is 0.51"),
        (encoder(y=changed(relative_error=math.inf)), "NaN or infinity"),
        (encoder(y=changed(classes="scores", class_agreement=0.9)), None),
        (encoder(y=changed(classes="scores", class_agreement=0.89)), "output y: the class changes for 11 %"),
        (encoder(y=changed(classes="probability", class_agreement=0.8, cosine=None)), "the class changes for 20 %"),
    ],
)
def test_each_rule_at_its_limit(validation: Validation, reason: str | None) -> None:
    verdict = judge(CONFIG, [site("a", 0.2)], validation)
    assert verdict is not None and verdict.usable is (reason is None)
    if reason is not None:
        assert len(verdict.reasons) == 1 and reason in verdict.reasons[0] and reason in verdict.sentence
        assert verdict.advice
    else:
        assert verdict.advice == ()


def test_what_is_not_judged_by_its_own_numbers() -> None:
    small = changed(classes="probability", class_agreement=1.0, relative_error=0.8, cosine=None)
    assert judge(CONFIG, [], encoder(p=small)) == Verdict(usable=True), "0.01 instead of 0.02 is the same answer"
    wide = changed(classes="scores", class_agreement=1.0, cosine=0.5)
    assert judge(CONFIG, [], encoder(y=wide)) == Verdict(usable=True), "classes have no direction"
    shifted = changed(relative_error=0.9, cosine=0.5)
    assert judge(CONFIG, [], language_model(logits=shifted, **{"present.0.key": shifted})) == Verdict(usable=True)
    hidden = judge(CONFIG, [], language_model(last_hidden_state=shifted))
    assert hidden is not None and not hidden.usable


def test_no_verdict_without_validation() -> None:
    assert judge(CONFIG, [site("a", 0.9)], None) is None


def test_a_bad_fit_is_a_warning_that_names_the_worst_and_no_verdict() -> None:
    sites = [site(f"s{i}", 0.5 + i / 100) for i in range(6)] + [site("kept", 0.9, "kept")]
    (warning,) = badly_fitted(sites)
    assert "s5 (0.55), s4 (0.54), s3 (0.53) and 2 more" in warning and "kept" not in warning
    assert badly_fitted([site("a", 0.5), site("b", None)]) == ()
    assert judge(CONFIG, sites, language_model()) == Verdict(usable=True)


def advice(config: ConvertConfig, validation: Validation | None = None, *sites: SiteReport) -> str:
    verdict = judge(config, sites, validation or language_model(quality(loss=9)))
    assert verdict is not None
    return "\n".join(verdict.advice)


def test_the_advice_is_of_knobs_that_are_left() -> None:
    fit = dataclasses.replace(CONFIG, method="fit")
    assert "--method reconstruct" in advice(fit) and "--method distil" in advice(fit)
    assert "--method reconstruct" not in advice(CONFIG) and "--method distil" in advice(CONFIG)
    distil = dataclasses.replace(CONFIG, method="distil", steps=600)
    assert "--method" not in advice(distil) and "--steps 1200" in advice(distil)
    assert "--samples 1024 (now 256)" in advice(CONFIG)
    assert "none were given" in advice(dataclasses.replace(CONFIG, data=None))
    assert "--max-kl" in advice(CONFIG) and "--max-error" in advice(CONFIG, encoder(y=changed(cosine=0.1)))
    assert "--max" not in advice(dataclasses.replace(CONFIG, max_error=9.0))
    exact = advice(dataclasses.replace(CONFIG, to="rmsnorm"))
    assert "bug" in exact and "--" not in exact.removeprefix("--to rmsnorm")


def test_the_advice_names_the_worst_sites_as_patterns_that_match_them() -> None:
    told = advice(CONFIG, None, site("a[0]", 0.7), site("b c", 0.9), site("c", 0.1), site("d", 0.2), site("e", None))
    assert "--keep 'b c' --keep 'a[[]0]' --keep d:" in told


def report(verdict: Verdict | None) -> Report:
    return Report(
        Path("m.onnx"), Path("out.onnx"), "dyisru", "fit", "none", "1", (site("a", 0.2),), (), verdict=verdict
    )


def printed(shown: Report) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(shown, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_console_and_the_page_begin_with_it() -> None:
    bad = report(Verdict(False, ("the loss <rises>", "[more]"), ("--keep 'a[[]0]'",)))
    lines = printed(bad).splitlines()
    assert lines[:2] == ["this model is not usable: the loss <rises>; [more]", "  try --keep 'a[[]0]'"]
    assert bad.as_dict()["verdict"] == {
        "usable": False, "reasons": ["the loss <rises>", "[more]"], "advice": ["--keep 'a[[]0]'"],
    }  # fmt: skip
    reader = Reader(render(bad))
    (box,) = reader.find("div", class_="verdict")
    assert "not usable" in box.text and "the loss <rises>" in box.text
    assert reader.elements.index(box) < reader.elements.index(reader.find("h1")[0])
    for good in (report(None), report(Verdict(usable=True))):
        assert "usable" not in printed(good)
        assert not Reader(render(good)).find("div", class_="verdict")
    assert report(None).as_dict()["verdict"] is None
