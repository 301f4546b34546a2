"""torchrun's agent of a node, which knows when starting again is of no use, and how its ranks ended."""

from __future__ import annotations

import signal
import time
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError

from torchx_components.endings import (
    DONE,
    FAULT,
    FINAL,
    INTERRUPTED,
    LOST,
    TERMINATED,
    WORSE,
    Endings,
    Lost,
    NodeEnd,
    RankEnd,
    describe,
    describe_early_stop,
    duration,
    overall,
)
from torchx_components.rendezvous import Meeting, say

GRACE_S = 30
"""How long ranks have to end after one of them failed: they have nothing to save without it."""

LOOK_S = 1.0
"""How often to look whether another node has ended."""

HEARSAY_S = 2.0
"""How long after a failure to listen whether another node has ended for good, before starting again."""


class Agent(LocalElasticAgent):
    """Starts the ranks of a node, watches them, starts them again.

    Attributes:
        failure: of the ranks that ended badly, the first; None as long as none has.

    Args:
        spec: the ranks, and the rendezvous.
        node: this node's name.
        endings: where nodes tell one another how they ended; None under a rendezvous other than ours.
        **options: those of torch's agent.
    """

    failure: ProcessFailure | None = None

    def __init__(self, spec: WorkerSpec, node: str, endings: Endings | None, **options: Any) -> None:
        super().__init__(spec, **options)
        self._node = node
        self._endings = endings
        self._ended: tuple[RankEnd, ...] = ()
        self._ended_unasked: set[int] = set()
        self._asked: set[int] = set()
        self._patience = GRACE_S
        self._started = self._looked = time.monotonic()

    def attend(self) -> tuple[NodeEnd, bool]:
        """Run the ranks until they have ended for good; returns how, and whether a signal to this process did it."""
        try:
            result = self.run()
        except SignalException as stop:
            return self._stopped(stop.sigval), True
        except Lost as lost:
            return NodeEnd(self._node, LOST, self._ended, str(lost)), False
        except RendezvousClosedError:
            return self._closed(), False
        except (DistError, RendezvousError) as error:
            return NodeEnd(self._node, LOST, self._ended, self._describe_loss(error)), False
        if result is None or not result.is_failed():  # None: the job had enough nodes, and ended without this one
            return NodeEnd(self._node, DONE), False
        return NodeEnd(self._node, overall(end.status for end in self._ended), self._ended), False

    # ── how torch's agent is changed ─────────────────────────────────────────────────────────────────────────

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._started = time.monotonic()
        self._ended, self._ended_unasked = (), set()
        assert self._pcontext is not None
        self._watch_closing(self._pcontext)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self._ended = self._ends(result)
            if not self._may_start_again():
                self._remaining_restarts = 0
        elif result.state == WorkerState.HEALTHY and self._is_over_elsewhere():
            self._remaining_restarts = 0
            self._ended = ()
            return RunResult(WorkerState.FAILED)
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if worker_group.state == WorkerState.HEALTHY:
            self._make_room(worker_group)
        else:
            allowed = worker_group.spec.max_restarts
            again = f"starting again ({allowed - self._remaining_restarts} of {allowed})"
            say(f"{describe(self._ended) or f'the ranks on {self._node} hang'}; {again}")
            super()._restart_workers(worker_group)

    def _make_room(self, worker_group: WorkerGroup) -> None:
        """Start again for a node that waits: a new one, for which the ranks can save, or one whose ranks are gone."""
        if isinstance(self._rdzv_handler, Meeting) and self._rdzv_handler.has_lost_one():
            say(f"another node starts its ranks again, and so does {self._node}")
        else:
            say(f"another node joins: the ranks on {self._node} start again")
            self._patience = self._shutdown_timeout
        super()._restart_workers(worker_group)
        self._patience = GRACE_S

    def _exit_barrier(self) -> None:
        if self._endings is None:
            super()._exit_barrier()
        # Otherwise nodes wait for one another once more is known: how each of them ended.

    def _shutdown(self, death_sig: signal.Signals | None = None, timeout: int = GRACE_S) -> None:
        """End the ranks. Torch's agent names the signal only if it got one itself: then they may save first."""
        is_asked = death_sig is not None
        passed_on = _for_ranks(death_sig)
        if is_asked:
            self._asked = {local_rank for local_rank, code in self._codes().items() if code is None}
        while True:
            try:
                return super()._shutdown(passed_on, timeout if is_asked else self._patience)
            except SignalException as again:  # a second Ctrl-C is for the ranks too
                passed_on = _for_ranks(again.sigval)

    # ── what it needs for that ───────────────────────────────────────────────────────────────────────────────

    def _watch_closing(self, context: PContext) -> None:
        """Note which ranks had failed before the others were told to end, and let those save that were asked to."""
        close = context.close

        def closing(death_sig: signal.Signals | None = None, timeout: int = GRACE_S) -> None:
            failures: dict[int, ProcessFailure] = getattr(context, "_failures", {})
            if not self._ended_unasked:
                self._ended_unasked = set(failures)
            if death_sig is None and all(each.exitcode in (INTERRUPTED, TERMINATED) for each in failures.values()):
                timeout = self._shutdown_timeout
            close(death_sig, timeout)

        context.close = closing  # type: ignore[method-assign]

    def _ends(self, result: RunResult) -> tuple[RankEnd, ...]:
        """The ranks that ended by themselves, and those that said what is wrong, whenever they did."""
        own = {
            rank: failure
            for rank, failure in sorted(result.failures.items())
            if failure.local_rank in self._ended_unasked or failure.exitcode in (FAULT, WORSE)
        }
        if own:
            worst = overall(RankEnd(0, 0, "", each.exitcode, 0).status for each in own.values())
            self.failure = next((each for each in own.values() if each.exitcode == worst), next(iter(own.values())))
        seconds = time.monotonic() - self._started
        return tuple(
            RankEnd(rank, failure.local_rank, self._node, failure.exitcode, seconds, _said(failure))
            for rank, failure in own.items()
        )

    def _may_start_again(self) -> bool:
        if overall(end.status for end in self._ended) in FINAL:
            return False
        if self._endings is None or not self._remaining_restarts or self._worker_group.group_world_size == 1:
            return True
        until = time.monotonic() + HEARSAY_S
        while time.monotonic() < until:
            if self._endings.told():
                return False
            time.sleep(0.2)
        return True

    def _is_over_elsewhere(self) -> bool:
        if self._endings is None or time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        return any(end.status != DONE for end in self._endings.told())

    def _closed(self) -> NodeEnd:
        """The others do not wait for this node any more."""
        if self._ended or (self._endings is not None and self._endings.told()):
            return NodeEnd(self._node, overall(end.status for end in self._ended), self._ended)
        return NodeEnd(self._node, LOST, (), "the job has ended already, on its other nodes")

    def _describe_loss(self, error: Exception) -> str:
        if isinstance(self._rdzv_handler, Meeting):
            return self._rdzv_handler.first_is_gone()
        return f"the nodes lost one another: {str(error).splitlines()[0]}"

    def _stopped(self, sigval: signal.Signals) -> NodeEnd:
        """How a node ended whose launcher got a signal: as its ranks did, which may have been at their end anyway."""
        asked = INTERRUPTED if sigval == signal.SIGINT else TERMINATED
        codes = {local_rank: code for local_rank, code in self._codes().items() if local_rank in self._asked}
        if not codes:
            return NodeEnd(self._node, asked, (), describe_early_stop(sigval))
        if not any(codes.values()):
            return NodeEnd(self._node, DONE)
        killed = [str(local_rank) for local_rank, code in codes.items() if code == -signal.SIGKILL]
        status = next((code for code in (FAULT, WORSE) if code in codes.values()), asked)
        late = (
            f"local rank {', '.join(killed)} on {self._node} had not ended {duration(self._shutdown_timeout)} after "
            f"{sigval.name} (--shutdown-timeout), and was killed: what it had not saved is lost"
        )
        return NodeEnd(self._node, status, (), late if killed else "")

    def _codes(self) -> dict[int, int | None]:
        """The exit code of each rank of this node; None while it runs."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {local_rank: handler.proc.poll() for local_rank, handler in handlers.items()}


def _for_ranks(got: signal.Signals | None) -> signal.Signals:
    """Ranks know how to stop at SIGTERM and SIGINT; a closed terminal or a scheduler's own signal means the former."""
    return signal.SIGINT if got == signal.SIGINT else signal.SIGTERM


def _said(failure: ProcessFailure) -> str:
    """What a rank left in its error file, if it wrote one."""
    message: Any = failure.message
    return str(message.get("message", ""))[:4000] if isinstance(message, dict) else ""
