"""Requests over gRPC: good ones, one by one and in streams; malformed, cancelled, too late and too large ones."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.serving.hammer.exchange import PATIENCE_S, connected, slam
from tests.serving.hammer.http_good import Send
from tests.serving.hammer.known import INPUT, OUTPUT, VOCABULARY, KnownAnswers
from tests.serving.hammer.tally import ANSWERED, CUT, REFUSED, Fault

CALL = "/inference.GRPCInferenceService/ModelInfer"
LARGEST = 2**31 - 1  # bytes of one message
FOUR = np.array([[65, 66, 67, 68]])
HUNG = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)  # where neither was asked for


class Grpc:
    """One connection: of one thread."""

    def __init__(self, address: str, model: str, known: KnownAnswers) -> None:
        self.address, self.model, self.known = address, model, known
        self.client = triton.InferenceServerClient(address)
        options = [("grpc.max_send_message_length", LARGEST), ("grpc.max_receive_message_length", LARGEST)]
        self.channel = grpc.insecure_channel(address, options=[*options, ("grpc.use_local_subchannel_pool", 1)])
        self.call = self.channel.unary_unary(CALL)  # bytes in, bytes out

    def close(self) -> None:
        """A server waits for its clients before it stops."""
        self.client.close()
        self.channel.close()

    def good(self) -> dict[str, Send]:
        """By name."""
        return {"good gRPC": self._one, "good gRPC by callback": self._by_callback, "good gRPC stream": self._stream}

    def malformed(self) -> dict[str, Send]:
        """By name."""
        changes: dict[str, Callable[[pb.ModelInferRequest], object]] = {
            "dtype FP32": lambda sent: _set(sent.inputs[0], datatype="FP32"),
            "dtype nonsense": lambda sent: _set(sent.inputs[0], datatype="NONE"),
            "rank 1": lambda sent: _reshape(sent, [4]),
            "rank 3": lambda sent: _reshape(sent, [1, 1, 4]),
            "no shape": lambda sent: _reshape(sent, []),
            "a negative shape": lambda sent: _reshape(sent, [1, -4]),
            "a vast shape": lambda sent: _reshape(sent, [1, 2**61]),
            "an overflowing shape": lambda sent: _reshape(sent, [2**33, 2**33]),
            "fewer values": lambda sent: _reshape(sent, [1, 8]),
            "more values": lambda sent: _reshape(sent, [1, 2]),
            "too many samples": lambda sent: _fill(sent, np.full((9, 1), 65)),
            "no tokens": lambda sent: _fill(sent, np.zeros((1, 0), np.int64)),
            "no inputs": lambda sent: sent.ClearField("inputs"),
            "an unknown input": lambda sent: _set(sent.inputs.add(), name="other", datatype="INT64"),
            "only an unknown input": lambda sent: _set(sent.inputs[0], name="other"),
            "an unknown output": lambda sent: _set(sent.outputs.add(), name="other"),
            "no data": lambda sent: sent.ClearField("raw_input_contents"),
            "data twice": lambda sent: sent.inputs[0].contents.int64_contents.extend([65] * 4),
            "odd bytes": lambda sent: _replace(sent, bytes(31)),
            "below the vocabulary": lambda sent: _fill(sent, np.full((1, 4), -VOCABULARY - 1)),
            "beyond the vocabulary": lambda sent: _fill(sent, np.full((1, 4), 2**62)),
            "unknown model": lambda sent: _set(sent, model_name="other"),
            "unknown version": lambda sent: _set(sent, model_version="7"),
            "an unknown region": lambda sent: _region(sent),
        }
        kinds = {f"gRPC {name}": self._refused_with(change) for name, change in changes.items()}
        return kinds | {
            "gRPC no message": self._no_message,
            "gRPC no HTTP/2": self._no_http2,
            "odd gRPC more data than inputs": self._more_data,
        }

    def cut(self) -> dict[str, Send]:
        """By name."""
        return {
            "cut gRPC cancelled": self._cancelled,
            "cut gRPC too late": self._too_late,
            "cut gRPC channel closed": self._channel_closed,
            "cut gRPC stream": self._stream_cut,
            "cut gRPC preface": self._preface,
            "cut gRPC answer too large": self._answer_too_large,
        }

    def large(self, longest: int, mebibytes: int) -> dict[str, Send]:
        """By name; the largest message has so many MiB."""
        tokens = mebibytes * (1 << 20) // 8
        return {
            "large gRPC too long": self._refused_with(lambda sent: _fill(sent, np.full((1, longest + 1), 65))),
            "large gRPC message": self._refused_with(lambda sent: _fill(sent, np.full((1, tokens), 65))),
        }

    def _request(self, ids: np.ndarray = FOUR) -> pb.ModelInferRequest:
        sent = pb.ModelInferRequest(model_name=self.model)
        sent.inputs.add(name=INPUT, datatype="INT64", shape=ids.shape)
        sent.raw_input_contents.append(ids.astype(np.int64).tobytes())
        return sent

    def _inputs(self, number: int) -> list[Any]:
        ids = self.known.inputs[number]
        made = triton.InferInput(INPUT, list(ids.shape), "INT64")
        made.set_data_from_numpy(ids.astype(np.int64))
        return [made]

    def _one(self, rng: np.random.Generator) -> str:
        number = self.known.next()
        answer = self.client.infer(self.model, self._inputs(number), client_timeout=PATIENCE_S)
        self.known.check(number, answer.as_numpy(OUTPUT))
        return ANSWERED

    def _by_callback(self, rng: np.random.Generator) -> str:
        number = self.known.next()
        said: queue.Queue = queue.Queue()
        self.client.async_infer(
            self.model,
            self._inputs(number),
            lambda result, error: said.put((result, error)),
            client_timeout=PATIENCE_S,
        )
        result, error = said.get(timeout=2 * PATIENCE_S)
        if error is not None:
            raise Fault(str(error))
        self.known.check(number, result.as_numpy(OUTPUT))
        return ANSWERED

    def _stream(self, rng: np.random.Generator) -> str:
        """Several requests under way on one stream, told apart by their ids; one of them is refused."""
        said: queue.Queue = queue.Queue()
        numbers = [self.known.next() for _ in range(4)]
        with self._streaming(said) as client:
            for number in numbers:
                client.async_stream_infer(self.model, self._inputs(number), request_id=str(number))
            client.async_stream_infer("other", self._inputs(numbers[0]))
            answers = [said.get(timeout=PATIENCE_S) for _ in range(5)]
        right = {result.get_response().id: result for result, error in answers if error is None}
        if set(right) != set(map(str, numbers)):
            raise Fault(f"of {numbers} on a stream {sorted(right)} were answered: {[str(e) for _, e in answers if e]}")
        for name, result in right.items():
            self.known.check(int(name), result.as_numpy(OUTPUT))
        return ANSWERED

    @contextlib.contextmanager
    def _streaming(self, said: queue.Queue, *, cancel: bool = False) -> Iterator[Any]:
        client = triton.InferenceServerClient(self.address)
        client.start_stream(lambda result, error: said.put((result, error)))
        try:
            yield client
        finally:
            client.stop_stream(cancel_requests=cancel)
            client.close()

    def _refused_with(self, change: Callable[[pb.ModelInferRequest], object]) -> Send:
        def send(rng: np.random.Generator) -> str:
            sent = self._request()
            change(sent)
            return self._refused(sent.SerializeToString())

        return send

    def _refused(self, sent: bytes) -> str:
        try:
            said = self.call(sent, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            if error.code() in HUNG or not error.details():
                raise Fault(f"{error.code().name}: {error.details()}") from None
            return f"{REFUSED}: {error.code().name}"
        raise Fault(f"no error, but an answer of {len(said)} bytes")

    def _more_data(self, rng: np.random.Generator) -> str:
        """Triton 2.51 passes over the data that is of no input."""
        number = self.known.next()
        sent = self._request(self.known.inputs[number])
        sent.raw_input_contents.append(bytes(32))
        try:
            said = self.call(sent.SerializeToString(), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return f"{REFUSED}: {error.code().name}"
        self.known.check(number, _logits(said))
        return ANSWERED

    def _no_message(self, rng: np.random.Generator) -> str:
        return self._refused(b"\xff" + rng.bytes(200))

    def _no_http2(self, rng: np.random.Generator) -> str:
        with connected(self.address) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(rng.bytes(3000))
            while connection.recv(1 << 16):
                pass
        return CUT

    def _cancelled(self, rng: np.random.Generator) -> str:
        under_way = self.call.future(self._request(self.known.inputs[self.known.next()]).SerializeToString())
        threading.Event().wait(rng.random() / 50)
        under_way.cancel()
        with contextlib.suppress(grpc.FutureCancelledError, grpc.RpcError):
            under_way.result(timeout=PATIENCE_S)
        return CUT if under_way.cancelled() else f"{CUT}: answered before"

    def _too_late(self, rng: np.random.Generator) -> str:
        number = self.known.next()
        try:
            answer = self.client.infer(self.model, self._inputs(number), client_timeout=0.001 + rng.random() / 50)
        except InferenceServerException as error:
            if "Deadline" not in str(error):
                raise
            return CUT
        self.known.check(number, answer.as_numpy(OUTPUT))
        return f"{CUT}: answered before"

    def _channel_closed(self, rng: np.random.Generator) -> str:
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(3):
            channel.unary_unary(CALL).future(self._request(self.known.inputs[self.known.next()]).SerializeToString())
        threading.Event().wait(rng.random() / 50)
        channel.close()
        return CUT

    def _stream_cut(self, rng: np.random.Generator) -> str:
        with self._streaming(queue.Queue(), cancel=True) as client:
            for _ in range(4):
                client.async_stream_infer(self.model, self._inputs(self.known.next()))
            threading.Event().wait(rng.random() / 50)
        return CUT

    def _preface(self, rng: np.random.Generator) -> str:
        """The start of HTTP/2, part of a message, and gone."""
        with connected(self.address) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + rng.bytes(50))
            slam(connection)
        return CUT

    def _answer_too_large(self, rng: np.random.Generator) -> str:
        """For this client, which then says so."""
        small = [("grpc.max_receive_message_length", 1000), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.address, options=small) as channel:
            try:
                channel.unary_unary(CALL)(self._request().SerializeToString(), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise Fault(f"{error.code().name}: {error.details()}") from None
                return CUT
        raise Fault("an answer of four tokens has fewer than 1000 bytes")


def _logits(answer: bytes) -> np.ndarray:
    said = pb.ModelInferResponse.FromString(answer)
    return np.frombuffer(said.raw_output_contents[0], np.float32).reshape(list(said.outputs[0].shape))


def _set(message: Any, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(message, name, value)


def _reshape(sent: pb.ModelInferRequest, shape: list[int]) -> None:
    sent.inputs[0].shape[:] = shape


def _replace(sent: pb.ModelInferRequest, raw: bytes) -> None:
    sent.raw_input_contents[0] = raw


def _fill(sent: pb.ModelInferRequest, ids: np.ndarray) -> None:
    _reshape(sent, list(ids.shape))
    _replace(sent, ids.astype(np.int64).tobytes())


def _region(sent: pb.ModelInferRequest) -> None:
    sent.ClearField("raw_input_contents")
    sent.inputs[0].parameters["shared_memory_region"].string_param = "x"
    sent.inputs[0].parameters["shared_memory_byte_size"].int64_param = 32
