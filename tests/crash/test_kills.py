"""A hundred SIGKILLs at seeded random moments: each run goes on at once and ends with an uninterrupted run's bytes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from processes import (
    Process,
    check_whole,
    commits,
    engines,
    held_in_the_middle,
    held_past_a_checkpoint,
    reopened,
    session_of,
    slowness,
    stage_of,
    still_there,
    through,
    whole_config,
)  # fmt: skip
from tiny import events

#: ``HELD``: the kill that is drawn in the search and then waits until it falls between two checkpoints of a candidate.
INLINE_SEEDS, INLINE_KILLS, HELD = range(8), 10, 7
RAY_KILLS = 5

#: What a run says on its way, and for how many seconds after it a kill is drawn.
LAUNCH = ("", 0.5)
SESSION = (", session ", 0.15)
DATA = ("data: ", 0.3)
RAY_STARTS = ("search: 0 of", 4.0)
SEARCHED = "135 of 135 candidates"
ENDINGS = ((SEARCHED, 0.08), ("hold-out: ", 0.1), ("masks: strong", 0.1), ("masks: 1 of 1", 0.02), ("100.0 %", 0.2))

#: Most commits of the whole grid's 1620 that a session makes before a kill in its search.
COMMITS = 250


@dataclass
class Toll:
    """Kills so far on one run directory after the other, and where they fell."""

    room: Path
    config: Path
    begin: Callable[..., Process]
    reference: Path
    chance: random.Random
    stages: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    runs: int = 1
    resumed: set[str] = field(default_factory=set)
    kept: dict[int, set[str]] = field(default_factory=dict)
    _killed_at: float | None = None

    @property
    def root(self) -> Path:
        return self.room / f"run-{self.runs}"

    def start(self) -> Process:
        """The same command, at once."""
        process = self.begin("run", "--config", self.config, "--out", self.root)
        if self._killed_at is not None:
            self.delays.append(process.started - self._killed_at)
        return process

    def wait(self, process: Process, moment: tuple[str, float] | int) -> bool:
        """Until a run has said this (and some random time more), or made that many commits; False if it ended."""
        if isinstance(moment, int):
            wanted = commits(self.root) + moment
            there = process.until(lambda: commits(self.root) >= wanted)
            time.sleep(self.chance.uniform(0.0, 0.01))
        else:
            there = process.until(lambda: moment[0] in process.said)
            time.sleep(self.chance.uniform(0.0, moment[1]))
        return there and process.running

    def hold(self, process: Process) -> bool:
        """Until it is stopped between two checkpoints of one candidate; False if it ended."""
        return process.until(lambda: any(held_past_a_checkpoint(one, self.root) for one in process.family()[:1]))

    def kill(self, process: Process, *, driver_only: bool = False) -> bool:
        """Whether this ended a run at work; it is counted then."""
        if not (process.kill_driver() if driver_only else process.kill_all()):
            return False
        self._killed_at = time.monotonic()
        session = session_of(self.root)
        self.stages[stage_of(self.root, session)] += 1
        self.kept[session] = through(self.root)
        return True

    def over(self, process: Process) -> None:
        """The run ended; what it left has to be right, and the next kills are for the next run."""
        assert process.ended() == 0, process.said
        check_whole(self.root, self.reference)
        for session, names in self.kept.items():
            assert reopened(self.root, names, session) == set(), "finished candidates were opened again"
        sizes = [len(names) for _, names in sorted(self.kept.items())]
        assert sizes == sorted(sizes), "a finished candidate was lost"
        self.resumed |= {event["writer"] for event in events(self.root, "RESUME_OK")} - {"driver"}
        self.runs += 1
        self.kept, self._killed_at = {}, None

    @property
    def kills(self) -> int:
        return sum(self.stages.values())

    def check_spread(self, least: int, within: float = 3.0) -> None:
        search = self.stages["train_supervised"]
        assert search >= least and self.kills - search >= least, f"the kills fell together: {self.stages}"
        assert max(self.delays) < within, f"restarts came late: {self.delays}"


def inline_moment(chance: random.Random, kill: int) -> tuple[str, float] | int:
    """Two kills while starting, two on the way to the search, four in it, two after it."""
    if kill < 2:
        return (LAUNCH, SESSION)[kill]
    if kill < 4:
        return DATA
    return chance.randrange(1, COMMITS) if kill < 8 else chance.choice(ENDINGS)


def ray_moment(chance: random.Random, kill: int) -> tuple[str, float] | int:
    """One kill while Ray starts, three in the search, one after it."""
    if kill == 0:
        return RAY_STARTS
    return chance.randrange(1, COMMITS) if kill < 4 else chance.choice(ENDINGS[1:])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", INLINE_SEEDS)
def test_a_run_killed_ten_times_gives_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_data: Path, reference: Path,
    processes: Callable[..., Process], seed: int,
) -> None:  # fmt: skip
    """While starting, building features, searching, choosing, segmenting, packaging, sealing; two seeds on a disk."""
    room = tmp_path if seed < 2 else request.getfixturevalue("room")
    toll = Toll(room, whole_config(room, tiny_data, "inline"), processes, reference, random.Random(seed))
    while toll.kills < INLINE_KILLS:
        process = toll.start()
        there = toll.wait(process, inline_moment(toll.chance, toll.kills))
        if not (there and (toll.kills != HELD or toll.hold(process)) and toll.kill(process)):
            toll.over(process)
    toll.over(toll.start())
    assert toll.resumed, "no candidate was continued from a checkpoint"
    assert toll.kills == INLINE_KILLS
    toll.check_spread(3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver_only", [False, True], ids=["the whole family", "the driver alone"])
def test_a_ray_run_killed_five_times_gives_the_same_bytes(
    room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], driver_only: bool
) -> None:
    """Where the driver alone is killed, the next session starts while the old trials still write."""
    chance = random.Random(f"ray {driver_only}")
    toll = Toll(room, whole_config(room, tiny_data, "ray"), processes, reference, chance)
    left: list[psutil.Process] = []
    while toll.kills < RAY_KILLS:
        process = toll.start()
        if toll.wait(process, ray_moment(chance, toll.kills)) and toll.kill(process, driver_only=driver_only):
            left += process.left
        else:
            toll.over(process)
    toll.over(toll.start())
    assert toll.kills == RAY_KILLS
    toll.check_spread(1, within=1.0)
    assert still_there(left) == [], "processes of a killed run stay"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["engine", "trial"])
def test_five_killed_engines_or_trials_are_replaced_in_the_same_session(
    room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], kind: str
) -> None:
    """A candidate whose process was killed is running again within ten seconds; an engine begins where trials ask."""
    chance = random.Random(kind)
    toll = Toll(room, whole_config(room, tiny_data, "ray"), processes, reference, chance)
    process, gone = toll.start(), set()
    hit: list[tuple[Path, str, int]] = []
    while len(gone) < RAY_KILLS:
        if not toll.wait(process, chance.randrange(1, COMMITS)):
            toll.over(process)
            process = toll.start()
        elif (found := find_victim(process, toll.root, kind, gone)) is not None:
            victim, candidate = found
            victim.kill()
            hit.append((toll.root, candidate, time.time_ns()))
            gone.add(victim.pid)
    last = toll.root
    toll.over(process)
    assert session_of(last) == 1, "the run was started again"
    for root in {root for root, _, _ in hit} if kind == "engine" else ():
        (stats,) = events(root, "ENGINE_STATS")
        assert stats["restarts"] >= 1, "what the dead engine did is not in the sums"
    for root, name, when in hit if kind == "trial" else []:
        again = min(e["ts_ns"] for e in events(root, "WRITER_OPEN", all_lines=True)
                    if e["writer"] == name and e["ts_ns"] > when)  # fmt: skip
        assert again - when < 10e9 * slowness(), f"{name} was running again after {(again - when) / 1e9:.1f} s"


def find_victim(process: Process, root: Path, kind: str, gone: set[int]) -> tuple[psutil.Process, str] | None:
    """An engine that is not dead already, or a trial, held fast, in the middle of a candidate; None if the run ends."""
    found: list[tuple[psutil.Process, str]] = []

    def there() -> bool:
        relatives = process.family()[1:]
        if kind == "engine":
            found.extend((one, "") for one in engines(relatives) if one.pid not in gone)
        elif (held := held_in_the_middle(relatives, root)) is not None:
            found.append(held)
        return bool(found)

    return found[0] if process.until(there) else None
