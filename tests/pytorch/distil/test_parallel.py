"""Distillation shared by two processes: the steps of one, to rounding."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynorm_onnx import convert
from dynorm_onnx.errors import UsageError
from tests.shipped import MODEL, TEXT

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.distil.batches import share_of, tokens_of  # noqa: E402
from tests.pytorch.distil import two_processes  # noqa: E402

SCRIPT = Path(__file__).parent / "two_processes.py"
ROOT = Path(__file__).parents[3]

shared = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed package")


def launched(*command: str) -> str:
    """What a program prints that torchrun runs in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, *launcher, *command]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@shared
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Padding and rows are shared unevenly: a mean of means would show."""
    launched(str(SCRIPT), str(tmp_path))
    for kind in two_processes.KINDS:
        two_processes.main(tmp_path / "alone.pt", kind)
        one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", kind))
        assert (one["processes"], two["processes"]) == (1, 2)
        assert len(one["losses"]) == 12
        np.testing.assert_allclose([loss for _, loss in two["losses"]], [loss for _, loss in one["losses"]], rtol=1e-4)
        for name, value in one["state"].items():
            np.testing.assert_allclose(two["state"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@shared
@pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs pip install dynorm-onnx[text]")
def test_the_command_is_shared_too_and_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:12_000])
    options = [str(MODEL), "--method", "distil", "--steps", "4", "--block-steps", "2", "--samples", "8"]
    options += ["--max-length", "64", "--data", str(text), "--no-time", "--json"]
    assert convert.main([*options, "-o", str(tmp_path / "1.onnx")]) == 0
    alone = capsys.readouterr().out
    together = launched("-m", "dynorm_onnx.convert", *options, "-o", str(tmp_path / "2.onnx"))
    losses = []
    for processes, printed in ((1, alone), (2, together)):
        report = json.loads(printed)["distillation"]
        assert report["processes"] == processes and len(report["blocks"]) == 8
        losses.append([*(point["loss"] for point in report["losses"]), *(b["after"] for b in report["blocks"])])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)  # bfloat16, where the processor computes in it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.onnx", "2.onnx", "text.txt"]


def test_rows_are_shared_and_what_has_none_stays_whole() -> None:
    ids = torch.arange(10).reshape(5, 2)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "scale": torch.tensor(2.0)}
    shares = [share_of(batch, rank, 2) for rank in range(2)]
    assert [share["input_ids"][:, 0].tolist() for share in shares] == [[0, 4, 8], [2, 6]]
    assert all(share["scale"] == 2 for share in shares)
    assert sum(tokens_of(share) for share in shares) == tokens_of(batch) == 10
    assert share_of(batch, 0, 1) is batch
    assert torch.equal(share_of((ids, 3), 1, 2)[0], ids[1::2])
    with pytest.raises(UsageError, match="a batch of 5 rows cannot be shared by 6 processes"):
        share_of(batch, 0, 6)
