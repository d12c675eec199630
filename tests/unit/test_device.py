"""Which device computes: a GPU counts only if it runs a kernel, is named where it does not, and comes by policy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import orjson
import pytest

from nx46vx.errors import EnvironmentFault
from nx46vx.runtime.device import CPU, DeviceChoice, Gpu, Probe, choose_device
from nx46vx.runtime.device import choice as choice_room
from nx46vx.runtime.device import probe as probe_room
from nx46vx.runtime.device.choice import in_order

GIB = 1 << 30
SMALL = Gpu(0, "0", "Small", 8 * GIB, 7 * GIB, "75")
LARGE = Gpu(1, "1", "Large", 80 * GIB, 5 * GIB, "90")
TWIN = Gpu(2, "2", "Large", 80 * GIB, 6 * GIB, "90")


@dataclass
class Card:
    """A pretended GPU. ``error``: what running a kernel on it raises; ``value``: what its kernel gives."""

    name: str
    error: str = ""
    value: float = 16.0
    total: int = 16 * GIB
    capability: tuple[int, int] = (8, 0)


@dataclass
class Pretended:
    """``torch.cuda`` of a machine with some cards; kernels that were run are counted."""

    cards: list[Card]
    available: bool = True
    ran: list[int] = field(default_factory=list)

    def ones(self, size: int, device: str) -> Any:
        index = int(device.partition(":")[2])
        card = self.cards[index]
        if card.error:
            raise RuntimeError(card.error)
        self.ran.append(index)
        summed = SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: card.value))
        return type("Vector", (), {"__mul__": lambda self, factor: summed})()

    @property
    def module(self) -> ModuleType:
        torch = ModuleType("torch")
        torch.ones = self.ones  # type: ignore[attr-defined]
        torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
            is_available=lambda: self.available, device_count=lambda: len(self.cards),
            get_device_name=lambda index: self.cards[index].name,
            mem_get_info=lambda index: (self.cards[index].total // 2, self.cards[index].total),
            get_device_capability=lambda index: self.cards[index].capability,
        )  # fmt: skip
        return torch


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretended]:
    def make(*cards: Card, **how: Any) -> Pretended:
        made = Pretended(list(cards), **how)
        monkeypatch.setitem(sys.modules, "torch", made.module)
        return made

    return make


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Probe]]:
    """What ``probe`` makes of a machine with a GPU device, whose child process runs this program."""
    monkeypatch.setattr(probe_room.glob, "glob", lambda pattern: ["/dev/nvidia0"])

    def look(program: str) -> Probe:
        monkeypatch.setattr(probe_room, "_command", lambda: [sys.executable, "-c", program])
        probe_room.probe.cache_clear()
        return probe_room.probe()

    yield look
    probe_room.probe.cache_clear()


# Trying


def test_a_gpu_counts_only_after_a_kernel_ran_on_it(pretend: Callable[..., Pretended]) -> None:
    machine = pretend(Card("One"), Card("Two", total=80 * GIB, capability=(9, 0)))
    found = probe_room.probe_here()
    assert machine.ran == [0, 1]
    assert found.gpus == (Gpu(0, "0", "One", 16 * GIB, 8 * GIB, "80"), Gpu(1, "1", "Two", 80 * GIB, 40 * GIB, "90"))
    assert found.failures == () and "2 GPU" in found.reason


def test_a_gpu_without_a_kernel_image_is_left_out_and_named(pretend: Callable[..., Pretended]) -> None:
    error = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be..."
    pretend(Card("Tesla K80", error=error), Card("A100"))
    found = probe_room.probe_here()
    assert [gpu.name for gpu in found.gpus] == ["A100"]
    assert found.failures == (
        "GPU 0 (Tesla K80) cannot run a kernel: CUDA error: no kernel image is available for execution on the device",
    )
    assert "Tesla K80" in found.reason


def test_a_gpu_that_computes_nonsense_is_left_out(pretend: Callable[..., Pretended]) -> None:
    pretend(Card("Worn", value=15.0))
    found = probe_room.probe_here()
    assert found.gpus == () and "15.0 for 16" in found.failures[0]


def test_gpus_are_named_as_their_children_will_see_them(
    pretend: Callable[..., Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(Card("One"), Card("Two"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2a")
    assert [gpu.id for gpu in probe_room.probe_here().gpus] == ["3", "GPU-8f2a"]


def test_a_machine_without_a_gpu_device_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_room.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(probe_room.subprocess, "run", lambda *given, **how: pytest.fail("a process was started"))
    probe_room.probe.cache_clear()
    assert probe_room.probe() == Probe((), (), "no GPU device on this machine")
    probe_room.probe.cache_clear()


def test_trying_leaves_no_torch_in_this_process(child: Callable[[str], Probe]) -> None:
    """The real child process, on whatever machine this is."""
    program = "from nx46vx.runtime.device import probe as p; p.glob.glob = lambda x: ['x']; import sys; "
    program += "print(p.probe().reason or 'ok'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_what_a_child_found_comes_back(child: Callable[[str], Probe]) -> None:
    told = Probe((SMALL, LARGE), ("GPU 2 (Old) cannot run a kernel: no",), "so")
    assert child(f"print('noise'); print({orjson.dumps(told.to_json()).decode()!r})") == told


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('libcuda.so is missing')", "libcuda.so is missing"),
        ("import os; os.abort()", "exit code -6"),
        ("print('{}')", "exit code 0"),
    ],
)
def test_a_child_that_fails_is_a_failure_in_words(child: Callable[[str], Probe], program: str, said: str) -> None:
    found = child(program)
    assert found.gpus == () and said in found.reason and found.failures == (found.reason,)


def test_a_driver_that_hangs_does_not_hang_the_run(
    child: Callable[[str], Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_room, "SECONDS", 0.3)
    assert "took longer" in child("import time; time.sleep(60)").reason


def test_a_device_file_without_a_usable_torch_is_a_failure(child: Callable[[str], Probe]) -> None:
    nothing = orjson.dumps(Probe((), (), "torch sees no GPU").to_json()).decode()
    assert child(f"print({nothing!r})").failures == ("torch sees no GPU",)


# Choosing


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(*gpus: Gpu, failures: tuple[str, ...] = (), reason: str = "so it is") -> None:
        monkeypatch.setattr(choice_room, "probe", lambda: Probe(gpus, failures, reason))

    return pretend


def test_the_cpu_is_taken_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_room, "probe", lambda: pytest.fail("it looked"))
    assert choose_device("cpu") == CPU == DeviceChoice("cpu", (), "asked for")
    assert CPU.label == "cpu" and CPU.count == 0


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_gpus_are_taken_where_there_are_any(found: Callable[..., None], asked: Any) -> None:
    found(SMALL, LARGE, failures=("GPU 2 (Old) cannot run a kernel: no",))
    device = choose_device(asked)
    assert (device.name, device.count, device.gpus) == ("cuda", 2, (LARGE, SMALL))
    assert device.failures == ("GPU 2 (Old) cannot run a kernel: no",)
    assert device.label == "cuda: Large (sm_90), Small (sm_75)"


def test_auto_falls_back_and_keeps_the_reason(found: Callable[..., None]) -> None:
    found(failures=("GPU 0 (Old) cannot run a kernel: no",), reason="GPU 0 (Old) cannot run a kernel: no")
    device = choose_device("auto")
    assert (device.name, device.count) == ("cpu", 0)
    assert device.failures and "Old" in device.reason


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(found: Callable[..., None]) -> None:
    found(reason="no GPU device on this machine")
    with pytest.raises(EnvironmentFault, match="no GPU device") as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 7 and "resources.device" in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "order"),
    [("most_memory", [LARGE, TWIN, SMALL]), ("most_free", [SMALL, TWIN, LARGE]), ("index", [SMALL, LARGE, TWIN])],
)
def test_several_gpus_come_by_policy_and_equal_ones_by_index(policy: Any, order: list[Gpu]) -> None:
    for gpus in ((SMALL, LARGE, TWIN), (TWIN, SMALL, LARGE)):
        assert list(in_order(gpus, policy)) == order


def test_a_choice_of_the_same_kinds_has_the_same_label() -> None:
    """It is part of the numeric environment: another number of equal GPUs changes no bit, another kind may."""
    assert DeviceChoice("cuda", (LARGE,)).label == DeviceChoice("cuda", (LARGE, TWIN)).label
    assert DeviceChoice("cuda", (LARGE,)).label != DeviceChoice("cuda", (SMALL,)).label


def test_the_child_finds_this_package_wherever_it_is_started(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import nx46vx.runtime.device.probe"], cwd=tmp_path, capture_output=True,
        env={**probe_room._environment(), "HOME": os.environ["HOME"]}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
