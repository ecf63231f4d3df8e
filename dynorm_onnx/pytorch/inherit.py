"""What a module that takes another's place keeps of it beside what it computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

_ALSO_CALLED = {"weight": ("gamma", "scale", "g"), "bias": ("beta", "shift", "b")}


def inherit(new: nn.Module, old: nn.Module, *, frozen: bool = False) -> None:
    """Gives `new` the mode, the hooks and the requires_grad of `old`, whose place it takes.

    Weight and bias are frozen where those of `old` are; what `old` has no counterpart of where all of `old` is, or,
    where it has no parameters, if `frozen` says so.
    """
    new.train(old.training)
    theirs = dict(old.named_parameters())
    trained = any(parameter.requires_grad for parameter in theirs.values()) if theirs else not frozen
    for name, parameter in new.named_parameters():
        own = name.rpartition(".")[2]
        counterpart = next((theirs[n] for n in (own, *_ALSO_CALLED.get(own, ())) if n in theirs), None)
        parameter.requires_grad_(trained if counterpart is None else counterpart.requires_grad)
    inherit_hooks(new, old, (*CALL_HOOKS, *STATE_HOOKS))


def inherit_hooks(new: nn.Module, old: nn.Module, kinds: tuple[str, ...] = CALL_HOOKS) -> None:
    """The hooks that others put on `old`; those that are methods of its own go with it.

    Both hold the same dicts afterwards: the handles that the hooks were registered with still remove them.
    """
    for kind in kinds:
        hooks = getattr(old, kind)
        if any(_is_own(hook, old) for hook in hooks.values()):
            hooks = OrderedDict((key, hook) for key, hook in hooks.items() if not _is_own(hook, old))
        for hook in hooks.values():
            if getattr(hook, "with_module", False):  # torch's wrapper, which calls the hook with the module it knows
                hook.__setstate__({**hook.__getstate__(), "module": new})
        setattr(new, kind, hooks)
    new._is_full_backward_hook = old._is_full_backward_hook


def _is_own(hook: Callable[..., Any] | bool, module: nn.Module) -> bool:
    inner = getattr(hook, "hook", hook)
    return getattr(inner, "__self__", None) is module
