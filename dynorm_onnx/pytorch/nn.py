"""DyT, DyISRU and Derf as modules, with the meaning of the ONNX operators of the same names.

For x of shape [..., C] and any float type, with weight and bias [C] and the other parameters [1] or [C]:

    DyT     y = weight * tanh(alpha x) + bias                    arXiv 2503.10622
    DyISRU  y = weight * x / sqrt(beta + x^2) + bias             arXiv 2503.21708
    Derf    y = weight * erf(alpha x + shift) + bias             arXiv 2512.10938

computed in float32 (in float64 for a float64 x) and rounded once, to the type of x. alpha, beta and shift
stay float32 whatever the module is cast to: beta is as large as a squared norm, which float16 cannot hold.

With a coupling (functions/coupling.py) x is multiplied before by the gain of its token, 1 / sqrt(1 + sum_j c_j x_j^2)
over the coupled channels: the operators CoupledDyT, CoupledDyISRU, CoupledDerf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import REGISTRY, Coupling, Function, NormParameters
from dynorm_onnx.pytorch.cores import CORES
from dynorm_onnx.pytorch.gain import gained

M = TypeVar("M", bound="ElementwiseNorm")

NO_EPSILON = math.nan
"""What the modules have for `eps`. nn.TransformerEncoderLayer hands weight and bias of its two norms to a fused
LayerNorm if their eps are equal, without ever calling them; nan equals nothing."""


class ElementwiseNorm(nn.Module):
    """What the three modules share: weight and bias per channel, float32 arithmetic, types and state.

    Args:
        channels: C, the size of the last axis.
        weight: the initial value of weight; bias begins at 0.
        scalars: initial values of the stored parameters, by name.
        per_channel: whether those have shape [C] instead of [1]. It decides the shapes in the state dict:
            a module loads the state of one that was made with the same `per_channel`.
        coupling: the channels that stay in the sum, k of them, if any. They add to the state coupled_channels, int64
            [k], and log_coupling, float32 [k], the logarithms of their strengths: those are trained as alpha and beta
            are, stay >= 0, and one of exactly 0, a logarithm of -inf, stays 0.
        device: of all of them.
        dtype: of weight and bias; the others are float32.
    """

    function: ClassVar[Function]
    stored: ClassVar[tuple[str, ...]]  # the names of the float32 parameters, as they are in the state dict

    weight: nn.Parameter
    bias: nn.Parameter
    coupled_channels: torch.Tensor | None
    log_coupling: nn.Parameter | None
    eps = NO_EPSILON

    def __init__(
        self,
        channels: int,
        *,
        weight: float,
        scalars: Mapping[str, float],
        per_channel: bool,
        coupling: Coupling | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self._initial = {"weight": weight, "bias": 0.0, **scalars}
        size = channels if per_channel else 1
        for name in ("weight", "bias"):
            setattr(self, name, nn.Parameter(torch.empty(channels, device=device, dtype=dtype)))
        for name in self.stored:
            setattr(self, name, nn.Parameter(torch.empty(size, device=device, dtype=torch.float32)))
        self.couple(coupling)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give every parameter its initial value."""
        with torch.no_grad():
            for name, value in self._initial.items():
                getattr(self, name).fill_(value)
        self._fill_coupling()

    def couple(self, coupling: Coupling | None) -> None:
        """Let these channels keep their place in the sum from now on, or none; all else stays as it is.

        An optimiser must be made anew. Raises UsageError for channels that are not there, come twice or have a
        strength that is no number from 0 on.
        """
        if coupling is not None:
            _check(coupling, self.channels)
        self._coupling = coupling
        device = self.weight.device
        self.register_buffer("coupled_channels", None)
        self.register_parameter("log_coupling", None)
        if coupling is not None:
            size = len(coupling.channels)
            self.coupled_channels = torch.empty(size, device=device, dtype=torch.int64)
            self.log_coupling = nn.Parameter(torch.empty(size, device=device, dtype=torch.float32))
            self._fill_coupling()

    def strengths(self) -> torch.Tensor | None:
        """Of the coupled channels, float32 [k]; None where there are none."""
        return None if self.log_coupling is None else torch.exp(self.log_coupling)

    @torch.no_grad()
    def _fill_coupling(self) -> None:
        if self._coupling is None or self.coupled_channels is None or self.log_coupling is None:
            return
        self.coupled_channels.copy_(torch.from_numpy(np.array(self._coupling.channels, np.int64)))
        self.log_coupling.copy_(torch.from_numpy(_logarithm(self._coupling.strengths)))

    def _gained(self, x: torch.Tensor) -> torch.Tensor:
        """x times the gain of its token; x itself where no channel is coupled."""
        strengths = self.strengths()
        if strengths is None or self.coupled_channels is None:
            return x
        return gained(x, self.coupled_channels, strengths)

    def core(self, x: torch.Tensor) -> torch.Tensor:
        """The function without weight and bias: x [..., C] of float32 or float64 gives the same shape and type."""
        parameters = {name: value.to(x.dtype) for name, value in self.scalars().items()}
        return CORES[self.function.name](x, **parameters)

    def scalars(self) -> dict[str, torch.Tensor]:
        """The operator's own parameters by their ONNX names, float32, shape [1] or [C]."""
        return {name: getattr(self, name) for name in self.stored}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., C], of the type of x."""
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        y = self.weight.to(compute) * self.core(self._gained(x.to(compute))) + self.bias.to(compute)
        return y.to(x.dtype)

    @classmethod
    def from_parameters(
        cls: type[M], parameters: NormParameters, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> M:
        """A module with parameters that were fitted elsewhere, as by the converter of ONNX files.

        `device` and `dtype` are those of weight and bias, as of the class. Raises UsageError for a coupling that
        couple() refuses.
        """
        per_channel = any(np.size(value) > 1 for value in parameters.scalars.values())
        construct: Callable[..., M] = cls
        size = len(parameters.weight)
        module = construct(size, per_channel=per_channel, coupling=parameters.coupling, device=device, dtype=dtype)
        module.load_parameters(parameters)
        return module

    @torch.no_grad()
    def load_parameters(self, parameters: NormParameters) -> None:
        """Overwrite all parameters in place; those of shape [1] may fill ones of shape [C].

        Raises UsageError where not as many channels are coupled as here: couple() changes that.
        """
        theirs = 0 if parameters.coupling is None else len(parameters.coupling.channels)
        ours = 0 if self.coupled_channels is None else len(self.coupled_channels)
        if theirs != ours:
            raise UsageError(f"{type(self).__name__} couples {ours} channels, the parameters to load couple {theirs}")
        if parameters.coupling is not None:
            _check(parameters.coupling, self.channels)
            self._coupling = parameters.coupling
            self._fill_coupling()
        arrays = {"weight": parameters.weight, "bias": parameters.bias, **self._to_stored(parameters.scalars)}
        for name, array in arrays.items():
            getattr(self, name).copy_(torch.from_numpy(np.array(array, np.float64)))

    @torch.no_grad()
    def to_parameters(self) -> NormParameters:
        """The parameters as the ONNX side holds them: numpy, float64."""
        return NormParameters(
            _numpy(self.weight),
            _numpy(self.bias),
            {name: _numpy(value) for name, value in self.scalars().items()},
            self._current_coupling(),
        )

    def _current_coupling(self) -> Coupling | None:
        strengths = self.strengths()
        if strengths is None or self.coupled_channels is None:
            return None
        return Coupling(self.coupled_channels.cpu().numpy().copy(), _numpy(strengths))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """As every module, and couples as many channels as the state does: a fit, not the caller, chose them."""
        channels = state_dict.get(f"{prefix}coupled_channels")
        if channels is not None and (self.coupled_channels is None or len(channels) != len(self.coupled_channels)):
            self.couple(Coupling(np.arange(len(channels)), np.ones(len(channels))))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _to_stored(self, scalars: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: scalars[name] for name in self.stored}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ElementwiseNorm:
        """Moves as every module does (.to, .half, .cuda, ...), but leaves `stored` and log_coupling in float32."""
        wide = [getattr(self, name) for name in (*self.stored, "log_coupling")]
        kept = {id(tensor) for parameter in wide if parameter is not None for tensor in (parameter, parameter.grad)}

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if id(tensor) in kept and result.dtype != tensor.dtype:
                return tensor.to(device=result.device)
            return result

        super()._apply(moved, recurse)
        return self

    def extra_repr(self) -> str:
        """For print(model)."""
        shape = "per channel" if getattr(self, self.stored[0]).numel() > 1 else "one for all channels"
        coupled = "" if self.coupled_channels is None else f", {len(self.coupled_channels)} coupled"
        return f"{self.channels}, {' and '.join(self.function.parameter_names)} {shape}{coupled}"


class DyT(ElementwiseNorm):
    """y = weight * tanh(alpha x) + bias (Zhu et al., arXiv 2503.10622), for x [..., C] of any float type.

    alpha begins at 0.5, the paper's value for all but language models (see `initial.dyt_alpha` for those). State:
    weight, bias, alpha. Arguments as of ElementwiseNorm. Raises UsageError for a coupling that couple() refuses.
    """

    function = REGISTRY["dyt"]
    stored = ("alpha",)

    def __init__(
        self,
        channels: int,
        *,
        alpha: float = 0.5,
        per_channel: bool = False,
        coupling: Coupling | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            weight=1.0,
            scalars={"alpha": alpha},
            per_channel=per_channel,
            coupling=coupling,
            device=device,
            dtype=dtype,
        )


class Derf(ElementwiseNorm):
    """y = weight * erf(alpha x + shift) + bias (Chen et al., arXiv 2512.10938), for x [..., C] of any float type.

    alpha begins at 0.5 and shift at 0, as in the paper. State: weight, bias, alpha, shift. Arguments as of
    ElementwiseNorm. Raises UsageError for a coupling that couple() refuses.
    """

    function = REGISTRY["derf"]
    stored = ("alpha", "shift")

    def __init__(
        self,
        channels: int,
        *,
        alpha: float = 0.5,
        shift: float = 0.0,
        per_channel: bool = False,
        coupling: Coupling | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        scalars = {"alpha": alpha, "shift": shift}
        super().__init__(
            channels,
            weight=1.0,
            scalars=scalars,
            per_channel=per_channel,
            coupling=coupling,
            device=device,
            dtype=dtype,
        )


class DyISRU(ElementwiseNorm):
    """y = weight * x / sqrt(beta + x^2) + bias (Stollenwerk, arXiv 2503.21708), for x [..., C] of any float type.

    State: weight, bias, log_beta; beta = exp(log_beta) > 0. Arguments as of ElementwiseNorm. Raises UsageError for a
    coupling that couple() refuses.

    beta begins at C and weight at sqrt(C). With beta_i = sum_{j != i} x_j^2 and weight sqrt(C) the function is
    RMSNorm, and for channels of unit variance that sum is about C: the module begins as the norm of a unit
    stream, with its bound sqrt(C) and its slope 1. (A DyT of that slope has alpha = sqrt(C) / sqrt(beta) = 1,
    the paper's value for language models up to 1,024 channels.) An embedding with entries far below 1 should be
    scaled to about 1, as a norm's blindness to scale is gone.
    """

    function = REGISTRY["dyisru"]
    stored = ("log_beta",)

    def __init__(
        self,
        channels: int,
        *,
        beta: float | None = None,
        weight: float | None = None,
        per_channel: bool = False,
        coupling: Coupling | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            weight=math.sqrt(channels) if weight is None else weight,
            scalars={"log_beta": math.log(channels if beta is None else beta)},
            per_channel=per_channel,
            coupling=coupling,
            device=device,
            dtype=dtype,
        )

    def scalars(self) -> dict[str, torch.Tensor]:
        """beta, float32, shape [1] or [C]."""
        return {"beta": torch.exp(self.log_beta)}

    def _to_stored(self, scalars: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"log_beta": np.log(np.asarray(scalars["beta"], np.float64))}


MODULES: dict[str, type[ElementwiseNorm]] = {module.function.name: module for module in (DyISRU, DyT, Derf)}
"""The modules by the names of `--to`."""


def _check(coupling: Coupling, channels: int) -> None:
    indices, strengths = np.asarray(coupling.channels), np.asarray(coupling.strengths)
    if indices.ndim != 1 or indices.shape != strengths.shape or not indices.size:
        raise UsageError(f"a coupling of {indices.shape} channels and {strengths.shape} strengths is not of k each")
    if indices.min() < 0 or indices.max() >= channels or len(np.unique(indices)) < len(indices):
        raise UsageError(f"the coupled channels {indices.tolist()} are not each one of {channels}, once")
    if not (np.isfinite(strengths) & (strengths >= 0)).all():
        raise UsageError(f"the coupling's strengths {strengths.tolist()} are not all numbers from 0 on")


def _logarithm(strengths: np.ndarray) -> np.ndarray:
    """-inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(strengths, np.float64))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
