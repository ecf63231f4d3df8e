"""Single requests that end a Triton server itself, whatever it serves: which of them do, a server each.

    python -m tests.serving.hammer.fatal

They are left out of tests.serving.hammer, where nothing after them could be seen.
"""

from __future__ import annotations

import gzip
import tempfile
import time
from pathlib import Path

from dynorm_onnx.serving.triton import write_triton_model
from tests.serving import server
from tests.serving.hammer.exchange import body, exchange, head, tensor
from tests.serving.hammer.triton import NAME, PATH
from tests.serving.hammer.watch import sample
from tests.shipped import MODEL

LEAKING = 20  # MiB, unpacked


def requests() -> dict[str, tuple[bytes, ...]]:
    """By name, in parts."""
    deep = b'{"inputs": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"
    vast = body(tensor(shape=[1, 2**62]))
    packed = gzip.compress(b"{" + b" " * (LEAKING << 20))
    chunked = head(PATH, None, [("Transfer-Encoding", "chunked")])
    return {
        "nothing out of the ordinary": (head(PATH, len(body(tensor()))), body(tensor())),
        "a shape of 2**62 in JSON": (head(PATH, len(vast)), vast),
        "a million brackets in JSON": (head(PATH, len(deep)), deep),
        "a million chunks of one byte": (chunked, b"1\r\n \r\n" * 1_000_000, b"0\r\n\r\n"),
        f"{LEAKING} MiB in gzip that are no JSON": (head(PATH, len(packed), [("Content-Encoding", "gzip")]), packed),
    }


def main() -> None:
    """Runs the command line above."""
    with tempfile.TemporaryDirectory() as folder:
        write_triton_model(MODEL, Path(folder) / "models", NAME, backend="python", threads=1)
        for name, parts in requests().items():
            with server.serving(Path(folder) / "models", Path(folder)) as running:
                before = sample(running.process).anonymous
                said = exchange(running.http, *parts)
                time.sleep(2)
                try:
                    after = f"{sample(running.process).anonymous - before:.0f} MiB more"
                except (OSError, KeyError):
                    after = "the server has ended"
            print(f"{name}: answered {said.status or 'nothing'}, {after}", flush=True)


if __name__ == "__main__":
    main()
