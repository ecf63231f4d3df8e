"""Threads that send requests of many kinds at once, for some seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.serving.hammer.http_good import Send
from tests.serving.hammer.tally import Fault, Tally

Member = Callable[[], tuple[Mapping[str, Send], Callable[[], None]]]
"""Gives the kinds that a thread sends, and what closes its connections."""

WAIT_S = 200  # for the last requests to end: more than twice what any waits


def work(
    tally: Tally,
    crew: Sequence[Member],
    pauses: Sequence[float],
    seconds: float,
    seed: int = 0,
) -> None:
    """Run every member of the crew in a thread of its own, until the time is over and its last request has ended.

    A member is called in its thread. Its kinds are sent in a drawn order, each as often as every other, with a pause
    behind each, up to twice as long.
    """
    tally.begin_gap()
    end = time.monotonic() + seconds

    def member(number: int) -> None:
        rng = np.random.default_rng((seed, number))
        try:
            kinds, close = crew[number]()
        except Exception as error:
            tally.begin()
            tally.fault(f"member {number}", repr(error))
            return
        try:
            while True:
                for name in rng.permutation(list(kinds)):
                    if time.monotonic() > end:
                        return
                    one(tally, str(name), kinds[name], rng)
                    time.sleep(2 * rng.random() * pauses[number])
        finally:
            close()

    threads = [threading.Thread(target=member, args=(number,), daemon=True) for number in range(len(crew))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(seconds + WAIT_S)
        if each.is_alive():
            tally.fault("hung", "a thread waits for the end of a request")


def one(tally: Tally, name: str, send: Send, rng: np.random.Generator) -> None:
    """Send one request to its end, and count it."""
    tally.begin()
    start = time.perf_counter()
    try:
        outcome = send(rng)
    except Exception as error:  # whatever it is: a request must end in an answer or in an error of its own
        tally.fault(name, str(error) if isinstance(error, Fault) else repr(error))
    else:
        tally.end(name, outcome, time.perf_counter() - start)
