"""A GPU that is not there: tensors without data whose operations are counted, and every wait of the host with them.

Operations on tensors of ``cuda`` run as torch's fake tensors do; all others run for real. What would make the host wait
for a real card is written down: reading a value, shapes that depend on values, copies from or to pageable memory.
torch's autograd engine asks the driver for streams, so a backward pass only fills in gradients; ``Counted`` counts the
operations of a whole step, backward included, on fake tensors of the CPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CARD = torch.device("cuda", 0)
READS_A_VALUE = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SHAPE_BY_VALUE = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default}
TAKES_A_MASK = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
ONLY_WRITES = {"aten::_fused_sgd_"}
"""Operations that torch has no fake of; they return nothing."""
LAUNCHES_NOTHING = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._local_scalar_dense.default,
    torch.ops.prim.device.default,
}


class Counted(TorchDispatchMode):
    """Counts operations that would launch something on a device, and those for which the host would wait."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launched: Counter[str] = Counter()
        self._fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args)
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Returns what the operation would, without data."""
        if func in READS_A_VALUE:
            return args[0].dtype == torch.bool  # everything is finite, and nothing was asked for
        if func._schema.name in ONLY_WRITES:
            return None
        try:
            return func(*args, **kwargs)
        except DynamicOutputShapeException:
            return args[0].new_empty((0,))

    def note(self, func: Any, args: Any) -> None:
        """Counts one operation."""
        name = func._schema.name.removeprefix("aten::")
        if func in READS_A_VALUE or func in SHAPE_BY_VALUE or _has_mask(func, args):
            self.waits.append(name)
        if not (func in LAUNCHES_NOTHING or func.is_view or name == "detach"):
            self.launched[name] += 1


class PretendCard(Counted):
    """The same for a card: operations of the host run for real, uncounted; copies between both are looked at."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__(fake)
        self._pinned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {})}
        wants_pinned = bool(kwargs.pop("pin_memory", False))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device")
        on_card = device is not None and torch.device(device).type == "cuda"
        if not on_card and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                made = func(*args, **kwargs)
            return self.pin(made) if wants_pinned else made
        self.note(func, args)
        if func in COPIES and self._is_blocking_copy(func, args, kwargs):
            self.waits.append(f"{func._schema.name.removeprefix('aten::')} of {tuple(args[0].shape)}")
        if func is aten.copy_.default and not isinstance(args[0], FakeTensor):
            with _disable_current_modes():
                args[0].fill_(1)  # what arrives from a card without data
        return self.run(func, *tree_map(self._as_fake, (args, kwargs)))

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Remembers that a tensor of the host would lie in page-locked memory."""
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor of the host would lie in page-locked memory."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _as_fake(self, value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if is_real else value

    def _is_blocking_copy(self, func: Any, args: Any, kwargs: Any) -> bool:
        if func is aten.copy_.default:
            to, source = args[0], args[1]
            asynchronous = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
        else:
            source, to = args[0], kwargs.get("device")
            asynchronous = bool(kwargs.get("non_blocking"))
        target = to.device if isinstance(to, torch.Tensor) else torch.device(to or source.device)
        if target.type == source.device.type or (source.dim() == 0 and source.device.type == "cpu"):
            return False  # a single number of the host travels with the launch
        host = source if source.device.type == "cpu" else to
        return not (asynchronous and isinstance(host, torch.Tensor) and self.is_pinned(host))


def _has_mask(func: Any, args: Any) -> bool:
    if func not in TAKES_A_MASK:
        return False
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _NotDone:
    """An event whose work has not come to its end, nor has any later one's, unless the host waits for it."""

    recorded = 0
    done = 0

    def __init__(self, card: PretendCard, **options: bool) -> None:
        self._card = card
        self._number = 0

    def record(self, stream: object = None) -> None:
        _NotDone.recorded += 1
        self._number = _NotDone.recorded

    def query(self) -> bool:
        return self._number <= _NotDone.done

    def synchronize(self) -> None:
        self._card.waits.append("event")
        _NotDone.done = max(self._number, _NotDone.done)

    def elapsed_time(self, later: _NotDone) -> float:
        return 0.0


@contextlib.contextmanager
def counted() -> Iterator[Counted]:
    """Counts the operations of the block, on fake tensors of the CPU."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, Counted(fake) as counter:
        yield counter


@contextlib.contextmanager
def pretend_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCard]:
    """Makes torch believe in a card for the duration of the block."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    card = PretendCard(fake)
    # Entered before torch is made to believe in a card: only without one the fake mode keeps the driver out.
    with fake, monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *given, **options: True)
        patch.setattr(torch.cuda, "Event", partial(_NotDone, card))
        patch.setattr(torch.cuda, "synchronize", lambda device=None: card.waits.append("synchronize"))
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, device=None: card.pin(tensor.clone()))
        patch.setattr(torch.Tensor, "is_pinned", lambda tensor, device=None: card.is_pinned(tensor))
        with card:
            yield card


def without_data(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Puts a model's parameters and buffers on a device as fake tensors; call it within a block of the above."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                    own[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    return model
