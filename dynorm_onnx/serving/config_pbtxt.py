"""config.pbtxt: a Triton model configuration in protobuf's text format (model_config.proto of Triton)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from dynorm_onnx.serving.tensors import ServedSignature, ServedTensor

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


@dataclasses.dataclass(frozen=True)
class TritonConfig:
    """What a config.pbtxt says, in the words of model_config.proto."""

    name: str
    backend: str  # "onnxruntime" or "python"
    model_file: str  # in the folder of each version
    signature: ServedSignature
    max_batch_size: int  # 0: the model sees every request as it came
    provider: str  # "cpu" or "cuda"
    instances: int
    max_delay_us: int  # for how long a request may wait for others to share a batch with
    libraries: Sequence[str] = ()  # op_library_filename
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """The file's content."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"name: {_quoted(self.name)}"
        yield f"backend: {_quoted(self.backend)}"
        yield f"default_model_filename: {_quoted(self.model_file)}"
        yield f"max_batch_size: {self.max_batch_size}"
        for kind, tensors in (("input", self.signature.inputs), ("output", self.signature.outputs)):
            for tensor in tensors:
                yield from _tensor_lines(kind, tensor, batched=self.max_batch_size > 0)
        yield f"instance_group [ {{ count: {self.instances} kind: {KINDS[self.provider]} }} ]"
        if self.max_batch_size > 0:  # Triton refuses the block for a model that is not batched
            yield f"dynamic_batching {{ max_queue_delay_microseconds: {self.max_delay_us} }}"
        if self.libraries:
            listed = ", ".join(map(_quoted, self.libraries))
            yield f"model_operations {{ op_library_filename: [ {listed} ] }}"
        for key, value in sorted(self.parameters.items()):
            yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _tensor_lines(kind: str, tensor: ServedTensor, *, batched: bool) -> Iterator[str]:
    dims = tensor.dims(batched)
    listed = ", ".join(map(str, dims or (1,)))
    yield f"{kind} {{"
    yield f"  name: {_quoted(tensor.name)}"
    yield f"  data_type: {tensor.data_type}"
    yield f"  dims: [ {listed} ]"
    if not dims and batched:  # dims must not be empty; Triton takes this axis off again, but not from scalars
        yield "  reshape { shape: [ ] }"
    yield "}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, which knows JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
