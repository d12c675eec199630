"""A ``map`` over Ray tasks on this machine: every call in a process with cores of its own, results in order."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nx46vx.errors import EnvironmentFault, in_words
from search.tune_parts import RETRIES

#: Tasks that wait beside those that run, so that a process which is done goes on at once.
WAITING = 2
#: How often it is asked, while none ends, whether to go on.
WAIT_SECONDS = 1.0
#: Longest that calls which are called off may take to clear up after themselves, in seconds.
CLEAR_SECONDS = 5.0


@dataclass(frozen=True)
class Room:
    """Where calls run, and how many. ``node``: Ray's id of this machine, which has the files; ``cores`` that Ray has
    there; each call has ``cores_each``, and at most ``at_once`` run."""

    node: str
    cores: int
    cores_each: int
    at_once: int

    @property
    def running(self) -> int:
        """Calls that run at a time, at most: Ray lets no more run than its cores allow."""
        return min(self.at_once, self.cores // self.cores_each)

    @property
    def in_flight(self) -> int:
        """Calls that Ray is given at a time."""
        return self.running if self.running < self.cores // self.cores_each else self.running + WAITING


def room_here(at_once: int, cores_each: int) -> Room | None:
    """The room on this machine, in the Ray session there is; None where Ray has no core of it."""
    node = str(ray.get_runtime_context().get_node_id())
    cores = next((int(one["Resources"].get("CPU", 0)) for one in ray.nodes() if one["NodeID"] == node), 0)
    return Room(node, cores, min(cores_each, cores), at_once) if cores else None


def _say_nothing(*arguments: Any) -> None:
    """For who wants to be told nothing."""


class CaseTasks:
    """The part of ``concurrent.futures.Executor`` that maps.

    What a call is given and what it returns crosses between processes: paths and names, no arrays. ``on_queued`` is
    told a call's arguments when Ray gets it, mostly while others are at work. ``on_wait`` is called every second while
    no call ends; what it raises ends the map.
    """

    def __init__(
        self, room: Room, *, on_queued: Callable[..., None] = _say_nothing,
        on_wait: Callable[[], None] = _say_nothing,
    ) -> None:  # fmt: skip
        self.room, self._on_queued, self._on_wait = room, on_queued, on_wait
        options: dict[str, Any] = {
            "num_cpus": room.cores_each, "max_retries": RETRIES,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(room.node, soft=False),
        }  # fmt: skip
        self._task: Any = ray.remote(**options)(_call)

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the calls; nothing is begun before the first one is asked for.

        The first call in this order that fails ends it with the very error that it raised, and no further one is
        begun. What is under way when the iterator is closed is called off.

        Raises:
            EnvironmentFault: a call's process was killed again and again, or Ray itself is gone.
        """
        calls = enumerate(zip(*iterables, strict=False))
        under_way: dict[Any, int] = {}
        over: dict[int, tuple[Any, BaseException | None]] = {}
        wanted, failed = 0, False
        try:
            while True:
                while not failed and len(under_way) < self.room.in_flight and (call := next(calls, None)) is not None:
                    under_way[self._task.remote(fn, *call[1])] = call[0]
                    self._on_queued(*call[1])
                if wanted in over:
                    result, error = over.pop(wanted)
                    if error is not None:
                        raise error
                    yield result
                    wanted += 1
                elif not under_way:
                    return
                else:
                    ended, _ = ray.wait(list(under_way), timeout=WAIT_SECONDS)
                    if not ended:
                        self._on_wait()
                    for one in ended:
                        over[under_way.pop(one)] = outcome = _outcome(one)
                        failed = failed or outcome[1] is not None
        finally:
            _call_off(list(under_way))


def _call(fn: Callable[..., Any], *arguments: Any) -> Any:
    """What runs in a task. The process may stay for the search, its memory not."""
    try:
        return fn(*arguments)
    finally:
        with contextlib.suppress(AttributeError, OSError):  # only some C libraries keep what was freed
            ctypes.CDLL(None).malloc_trim(0)


def _outcome(one: Any) -> tuple[Any, BaseException | None]:
    """What a call returned, or what it raised."""
    try:
        return ray.get(one), None
    except ray.exceptions.RayTaskError as error:
        return None, error.cause
    except ray.exceptions.RayError as error:
        killed = isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError)
        return None, EnvironmentFault(
            "a process was killed at its work again and again" if killed else "Ray cannot run tasks here any more",
            where="Ray's tasks on this machine",
            found=in_words(error),
            fix="most often memory is short: lower features.workers or features.block, and start again",
        )


def _call_off(under_way: Sequence[Any]) -> None:
    """End calls where they are, and those that Ray has not begun."""
    with contextlib.suppress(ray.exceptions.RayError):  # what ended the map is what is to be said
        for one in under_way:
            ray.cancel(one)
        if under_way:
            ray.wait(list(under_way), num_returns=len(under_way), timeout=CLEAR_SECONDS)
