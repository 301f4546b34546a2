"""`debug=true`: where numbers come from that are not finite, by module, step and rank. And without it: that they came.

With it, every output of a module is looked at when it is made, and every gradient between two operations when autograd
has it. The first that is NaN or infinite ends the training before anything is built on it: a gradient is found before
it reaches a table. It is told with the module whose code made it and, in the backward, with the line of its forward.
Nothing is computed differently, so a fault comes at the same step with `debug=true` as without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import LazyAwaitable, ShardedModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from common.errors import InputError
from serving.checkpoints.model import dense_tensors
from sharding.tables import TableShard, table_shards
from sharding.world import World
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[1]

BLOCK_ROWS = 2**14
"""Rows of a table looked at one by one at once, when some of it is known not to be finite."""


def describe_debug(config: TrainConfig) -> str:
    """What `debug=true` has set, a line to be added to what a run says at its start; empty without it."""
    if not config.debug:
        return ""
    small = " (model.max_history, where a run begins)" if config.resume == "false" else ""
    return (
        f"\ndebug: looking for numbers that are not finite, which makes steps slow; log_every={config.log_every}, "
        f"batch.workers={config.batch.workers}, batch.tokens={config.batch.tokens}{small}"
    )


def lost_numbers(
    config: TrainConfig, loss: float, broken: Mapping[str, Tensor], first: int, last: int, newest: str
) -> InputError:
    """The fault of a training without `debug`, alike on all ranks.

    Args:
        config: of the run.
        loss: of the steps `first` … `last`, summed or on average.
        broken: dense parameters that are not finite after step `last`.
        first, last: the steps looked at, counted from 1.
        newest: name of the newest checkpoint, made before it; empty if there is none.
    """
    steps = f"step {last}" if first == last else f"step {last} (the steps since {first})"
    what = f"the loss is {loss} at {steps}"
    if math.isfinite(loss):
        name, value = next(iter(broken.items()))
        what = f"parameter `{name}` has {_count(value)} after {steps}"
    again = (
        f"go on from the last good checkpoint, {newest}, with resume=true debug=true"
        if newest
        else "begin again (no checkpoint had been made) with resume=auto debug=true"
    )
    return InputError(
        f"{what}: nothing of these steps is saved. To see where it comes from, {again}; to mend it, {_remedies(config)}"
    )


def broken_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those with a number that is not finite, by name. Waits for the device once."""
    names = [name for name, value in tensors.items() if value.is_floating_point() and value.numel()]
    if not names:
        return {}
    finite = torch.stack([tensors[name].detach().isfinite().all() for name in names]).tolist()
    return {name: tensors[name].detach() for name, sound in zip(names, finite, strict=True) if not sound}


@dataclass
class _Call:
    """A module whose forward is running.

    Attributes:
        name: of the module, as in a state_dict; empty for the whole model.
        was_sound: whether all that it was given is finite.
        done: the last module inside of it that has returned, all being well.
        seen: the first module inside of it that was given what is not finite.
    """

    name: str
    was_sound: bool
    done: str = ""
    seen: str = ""


class Inspection:
    """Looks at all numbers of the steps made while it is entered; off, it does nothing.

    Autograd's nodes are told apart by the module whose code made them: what is found behind a module's output and
    belongs to nobody yet is its own, but for what is behind its inputs, which belongs to the module around it.

    Args:
        config: of the run.
        model: what is trained; its modules go by their names in `state_dict`.
        world: this rank.
    """

    def __init__(self, config: TrainConfig, model: DistributedModelParallel, world: World) -> None:
        self.on, self._model, self._rank = config.debug, model, world.rank
        self._config = config
        self._dense: dict[str, Tensor] = {}
        self._shards: list[TableShard] = []
        self._undo = contextlib.ExitStack()
        self._running: list[_Call] = []
        self._owners: dict[Node, str] = {}
        self._step, self._where = 0, "before the first step"

    def __enter__(self) -> Inspection:
        if not self.on:
            return self
        self._dense, self._shards = dense_tensors(self._model), table_shards(self._model)
        self._undo.enter_context(torch.autograd.set_detect_anomaly(True))  # keeps where each operation was called
        self._undo.enter_context(warnings.catch_warnings())
        for name, module in self._modules():
            before = module.register_forward_pre_hook(functools.partial(self._before, name), with_kwargs=True)
            after = module.register_forward_hook(functools.partial(self._after, name))
            self._undo.callback(before.remove)
            self._undo.callback(after.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()
        self._undo.close()

    def before_step(self, step: int, epoch: int, step_in_epoch: int) -> None:
        """Look at all parameters and this rank's rows of tables, before a step.

        Args:
            step: its number in the run, from 1 on, as in `metrics.jsonl`.
            epoch, step_in_epoch: its place, both from 0 on.

        Raises:
            InputError: some are not finite.
        """
        if not self.on:
            return
        self._forget()
        self._step = step
        self._where = f"step {step} (epoch {epoch}, batch {step_in_epoch} of it), rank {self._rank}"
        broken = broken_tensors(self._dense)
        if broken:
            name, value = next(iter(broken.items()))
            raise self._fault_before(f"parameter `{name}` has {_count(value)}")
        for shard in self._shards:
            rows = _broken_rows(shard.weight_RD)
            if rows:
                few = ", ".join(str(shard.first_row + row) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
                raise self._fault_before(
                    f"table `{shard.table}` has numbers that are not finite in {len(rows)} of its {shard.rows} rows on "
                    f"this rank: {few}"
                )

    def _forget(self) -> None:
        self._running, self._owners = [], {}

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All but what TorchRec has inside of a sharded module."""
        inside: list[str] = []
        for name, module in self._model.module.named_modules():
            if name.startswith(tuple(inside)):
                continue
            if isinstance(module, ShardedModule):
                inside.append(f"{name}.")
            yield name, module

    # ── forward ──────────────────────────────────────────────────────────────────────────────────────────

    def _before(self, name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*_tensors((args, kwargs))]
        sound = all(map(_is_sound, given))
        if self._running:
            self._claim(given, self._running[-1].name)
            if not sound:
                for call in self._running:
                    call.seen = call.seen or name
        self._running.append(_Call(name, sound))

    def _after(self, name: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = self._running.pop()
        if isinstance(output, LazyAwaitable):  # of a sharded module: there when somebody asks for it
            output.callbacks.append(functools.partial(self._arrived, name))
            return
        made = [*_tensors(output)]
        if call.was_sound:
            for value in made:
                if not _is_sound(value):
                    raise self._fault(f"what {_named(name)} gives has {_count(value)}; {_came(call)}")
        self._claim(made, name)
        if self._running and not self._running[-1].seen:
            self._running[-1].done = name

    def _arrived(self, name: str, result: Any) -> Any:
        """What a sharded module has looked up, on whichever ranks."""
        tables = result.to_dict() if isinstance(result, KeyedTensor) else result
        for table, value in tables.items() if isinstance(tables, Mapping) else ():
            for rows in _tensors(value):
                if not _is_sound(rows):
                    raise self._fault(f"what `{name}` has looked up in table `{table}` has {_count(rows)}")
        self._claim([*_tensors(result)], name)
        return result

    # ── backward ─────────────────────────────────────────────────────────────────────────────────────────

    def _claim(self, made: Sequence[Tensor], owner: str) -> None:
        """Watch the operations behind tensors that nobody has claimed yet."""
        waiting = [value.grad_fn for value in made if value.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._owners or hasattr(node, "variable"):  # a parameter's own node outlives the step
                continue
            self._owners[node] = owner
            # Not the node itself, which would keep itself alive.
            metadata: Any = node.metadata  # which torch's own types take for a method
            told = functools.partial(_operation, node.name(), metadata)
            node.register_prehook(functools.partial(self._gradient_comes, owner, told))
            node.register_hook(functools.partial(self._gradient_goes, owner, told))
            waiting += [behind for behind, _ in node.next_functions if behind is not None]

    def _gradient_comes(self, owner: str, told: Callable[[], str], gradients: tuple[Tensor | None, ...]) -> None:
        """Before an operation's backward: a hook on a tensor, or a sum of gradients, may have changed what came."""
        for value in _tensors(gradients):
            if not _is_sound(value):
                raise self._fault(f"the gradient of what {_named(owner)} made {told()} has {_count(value)}")

    def _gradient_goes(
        self,
        owner: str,
        told: Callable[[], str],
        gradients: tuple[Tensor | None, ...],
        _came: tuple[Tensor | None, ...],
    ) -> None:
        """After it; what came to it has been looked at."""
        for value in _tensors(gradients):
            if not _is_sound(value):
                raise self._fault(
                    f"the backward of {_named(owner)} {told()} gives a gradient that has {_count(value)}; what came "
                    "to it is finite"
                )

    # ── what is said ─────────────────────────────────────────────────────────────────────────────────────

    def _fault(self, what: str) -> InputError:
        # The line of an operation is in our message; autograd would print all frames of its call before it.
        warnings.filterwarnings("ignore", message="Error detected in ")
        return InputError(
            f"{self._where}: {what}. To mend it, {_remedies(self._config)}, or look at the data of this step. "
            f"{self._way_back(self._step)}"
        )

    def _fault_before(self, what: str) -> InputError:
        """Of parameters, which are as the step before has left them."""
        why = "It begins so: look at start_from, or at the vectors behind the code table"
        if self._step > 1:
            why = (
                f"The update of step {self._step - 1} made it so: {_remedies(self._config)}. If the run went on from a "
                f"checkpoint of that step, remove its folder. {self._way_back(self._step - 1)}"
            )
        return InputError(f"before {self._where}: {what}. {why}")

    def _way_back(self, step: int) -> str:
        """How to go through a step again."""
        if step <= 1:
            return "It is the run's first step, to which every start comes"
        tokens = f"batch.tokens={self._config.batch.tokens}"
        return (
            f"To come back to it: resume=auto max_steps={step - 1} {tokens} trains up to it and saves, then "
            f"resume=true debug=true {tokens} goes through it, as often as you like"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of floats inside of a value; what an awaitable will give is not asked for."""
    if isinstance(value, LazyAwaitable):
        return
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, KeyedTensor | JaggedTensor):
        yield from _tensors(value.values())
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for leaf in dataclasses.fields(value):
            yield from _tensors(getattr(value, leaf.name))


def _count(value: Tensor) -> str:
    """How many numbers of which are not finite."""
    nans, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    kinds = " and ".join(f"{count} {kind}" for count, kind in ((nans, "nan"), (infinite, "inf")) if count)
    return f"{kinds} among its {value.numel()} numbers of shape {list(value.shape)}"


def _is_sound(value: Tensor) -> bool:
    return bool(value.detach().isfinite().all())  # detached, or autograd would keep what the look itself computes


def _broken_rows(weight_RD: Tensor) -> list[int]:
    """Rows with a number that is not finite."""
    if math.isfinite(weight_RD.sum().item()):  # needs no memory, as large as tables are
        return []
    found: list[int] = []
    for start in range(0, len(weight_RD), BLOCK_ROWS):
        broken = ~weight_RD[start : start + BLOCK_ROWS].isfinite().all(dim=1)
        found += [start + row for row in broken.nonzero().flatten().tolist()]
    return found


def _remedies(config: TrainConfig) -> str:
    told = "lower optimizer.learning_rate or optimizer.sparse_learning_rate, lengthen optimizer.warmup_steps"
    told += ", set optimizer.clip_norm" if not config.optimizer.clip_norm else ", lower optimizer.clip_norm"
    return told + (", set model.precision=float32" if config.model.precision == "bf16" else "")


def _named(module: str) -> str:
    return f"`{module}`" if module else "the model itself"


def _came(call: _Call) -> str:
    """Between which of the modules inside of one its numbers went wrong."""
    said = "what it was given is finite"
    said += f", and so is what `{call.done}` in it has given" if call.done else ""
    return said + (f"; the first in it to be given such numbers is `{call.seen}`" if call.seen else "")


_FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+), in ')


def _operation(name: str, metadata: Mapping[str, Any]) -> str:
    """An operation by autograd's name for it and the line of ours that called it, as anomaly detection has kept it."""
    for frame in reversed(metadata.get("traceback_", ())):
        found = _FRAME.search(frame)
        if found and Path(found["file"]).is_relative_to(ROOT) and "site-packages" not in found["file"]:
            return f"in {Path(found['file']).relative_to(ROOT)}, line {found['line']} ({name})"
    return f"in {name}"
