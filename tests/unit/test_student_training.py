"""A student's training: its gradient, schedule, memory and stopping; it goes on from a checkpoint bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_specs import cut_cases_of, small, spec_of

from nx46vx.data.cases import Case
from nx46vx.errors import IncompatibleError, NX46Error
from nx46vx.model.metrics import count_at_thresholds
from nx46vx.runtime import memory as memory_room
from nx46vx.runtime.cgroup import GroupMemory
from nx46vx.runtime.checkpoint import CheckpointStore
from nx46vx.runtime.sink import MemorySink, NullSink
from nx46vx.student import compiling
from nx46vx.student import trainer as trainer_room
from nx46vx.student.estimate import affordable
from nx46vx.student.gradients import ByMicroBatch, BySample
from nx46vx.student.loader import PatchLoader
from nx46vx.student.losses import sample_losses
from nx46vx.student.memory import fitting, free_bytes, saved_bytes
from nx46vx.student.numerics import numerics
from nx46vx.student.schedule import learning_rate, update_average
from nx46vx.student.spec import StudentSpec
from nx46vx.student.state import arrays_of
from nx46vx.student.trainer import Trainer
from nx46vx.student.unet import build_network
from nx46vx.student.validation import EarlyStopping, Quality
from trainables.student import StudentTask


@pytest.fixture(scope="module")
def cases(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cut_cases_of(tiny_data, tmp_path_factory.mktemp("cut"))


# The gradient of a batch.


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, 2, 16, 16, 16, generator=generator)
    return image, (image[:, :1] > 1).to(torch.uint8), torch.rand(size, 8, generator=generator) * 2


def losses_of(net: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return lambda image, label, keep: sample_losses(net(image, keep), label, small())


def gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_every_way_to_the_gradient_leads_to_that_of_the_mean_loss() -> None:
    net = build_network(StudentSpec("r", 0, "3d", small(), (), (), 1), 1)
    losses_of(net)(*batch()).mean().backward()
    expected = gradients(net)
    with ThreadPoolExecutor(2) as executor:
        parameters = list(net.parameters())
        ways = [BySample(parameters, executor), *(ByMicroBatch(parameters, size, NullSink()) for size in (1, 2, 3))]
        for way in ways:
            told = way(losses_of(net), *batch(), torch.tensor(1.0))
            torch.testing.assert_close(told, losses_of(net)(*batch()).detach(), rtol=1e-4, atol=1e-5)
            for one, other in zip(gradients(net), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_gradients_bits_do_not_depend_on_the_number_of_threads() -> None:
    net, found = build_network(StudentSpec("r", 0, "3d", small(), (), (), 1), 1), []
    with numerics("cpu", cudnn_benchmark=False):
        for threads in (1, 2, 4):
            with ThreadPoolExecutor(threads) as executor:
                BySample(list(net.parameters()), executor)(losses_of(net), *batch(4), torch.tensor(1.0))
            found.append(torch.cat([g.flatten() for g in gradients(net)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_patches_that_do_not_fit_after_all_are_taken_fewer_at_a_time() -> None:
    net = build_network(StudentSpec("r", 0, "3d", small(), (), (), 1), 1)
    seen: list[int] = []

    def losses(image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        seen.append(len(image))
        if len(image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return losses_of(net)(image, label, keep)

    sink = MemorySink()
    way = ByMicroBatch(list(net.parameters()), 4, sink)
    assert len(way(losses, *batch(4), torch.tensor(1.0))) == 4
    assert (seen, way.size) == ([4, 2, 1, 1, 1, 1], 1)
    assert [event["micro_batch"] for event in sink.named("STUDENT_MICRO_BATCH")] == [2, 1]
    expected = gradients(net)
    ByMicroBatch(list(net.parameters()), 1, NullSink())(losses_of(net), *batch(4), torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(gradients(net), expected, strict=True))


def test_what_a_patch_keeps_for_its_backward_pass_is_counted() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: (x * x).exp().sum()) == 8000  # x once, and the exponential's result
    model = torch.nn.Linear(1000, 1000, bias=False)  # 4 MB
    assert fitting(10_000_000, model, 100_000_000, 16) == int((80e6 - 24e6) / 15e6)
    assert fitting(10_000_000, model, 10_000_000_000, 16) == 16
    assert fitting(10_000_000, model, 1, 16) == 1


def test_a_containers_limit_counts_as_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_room, "tightest_group", lambda: GroupMemory(Path("/"), 1000, 300))
    assert free_bytes("cpu") == 700
    monkeypatch.setattr(memory_room, "tightest_group", lambda: None)
    assert free_bytes("cpu") > 1 << 20


# The schedule.


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.5)), abs=1e-9)
    assert rates[10:] == sorted(set(rates[10:]), reverse=True) and rates[-1] < 0.012


def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    model, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(average.weight)
    update_average(average, model, 0.9, 1)
    assert float(average.weight.detach()) == pytest.approx(0.9)
    update_average(average, model, 0.9, 10_000)
    assert float(average.weight.detach()) == pytest.approx(0.91)


# When it stops.


def test_the_score_prefers_a_student_that_is_steady_over_volumes() -> None:
    def counts(found: int) -> Any:
        probability = np.r_[np.full(found, 0.97), np.zeros(100 - found), np.zeros(900)]
        return count_at_thresholds(probability, np.r_[np.ones(100, np.uint8), np.zeros(900, np.uint8)])

    steady, uneven = Quality.of([counts(50), counts(50)], 0.5), Quality.of([counts(90), counts(20)], 0.5)
    assert np.mean(uneven.each) < 1 and uneven.score < np.mean(uneven.each)
    assert steady.score == pytest.approx(np.mean(steady.each)) and steady.score > uneven.score
    assert steady.each[0] == pytest.approx(1.25 * 50 / (1.25 * 50 + 0.25 * 50))


def test_early_stopping_waits_its_patience_and_keeps_the_best() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.01)
    better = [stopping.saw(epoch, score) for epoch, score in enumerate([0.5, 0.6, 0.605, 0.55], start=1)]
    assert better == [True, True, True, False] and (stopping.epoch, stopping.best) == (3, 0.605)
    assert stopping.over  # 0.605 was kept, but too little better to renew the patience
    assert not EarlyStopping(1, 0.0).over


def test_epochs_are_as_many_as_fit_and_none_if_too_few() -> None:
    assert affordable(10, 10.0, 50.0, 300.0)[0] == 10
    assert affordable(10, 10.0, 50.0, 150.0)[0] == 5
    epochs, told = affordable(10, 10.0, 50.0, 100.0)
    assert epochs == 0 and told["epochs_that_fit"] == 1 and "too little" in told["reason"]
    assert affordable(10, 10.0, 50.0, -100.0)[0] == 0


# Training as a whole.


def task(spec: StudentSpec, root: Path, sink: MemorySink | None = None) -> StudentTask:
    store = CheckpointStore(root, run_id="run", identity={"config": "x"}, fence=1)
    return StudentTask(spec, store, sink if sink is not None else MemorySink())


def trained(spec: StudentSpec, root: Path, stops: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The state after training; it is given up, and begun again, after each of ``stops`` pieces of work."""
    with numerics("cpu", cudnn_benchmark=False):
        for stop in (*stops, 10**6):
            one = task(spec, root)
            while not one.done and stop:
                one.advance()
                stop -= 1
            one.save()
            one.close()
        assert one.done
        return arrays_of(one.trainer)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"amp": True, "topology_loss": "cldice", "multi_scale": True, "attention": True},
        pytest.param({"variant": "2.5d", "channels_last": False}, marks=pytest.mark.slow),
    ],
    ids=["plain", "scaler", "2.5d"],
)
def test_a_training_that_was_stopped_ends_in_the_same_bits(
    cases: list[Case], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Stopped within an epoch, between its last step and its validation, and between two epochs."""
    spec = spec_of(cases, **changes)
    whole = trained(spec, tmp_path / "whole")
    assert {name.partition("/")[0] for name in whole} == {"model", "ema", "best", "adam_first", "adam_second"}
    assert equal(trained(spec, tmp_path / "parts", (2, 2, 1, 5, 3)), whole)


def test_threads_processes_and_other_cases_names_change_no_bit(cases: list[Case], tmp_path: Path) -> None:
    whole = trained(spec_of(cases), tmp_path / "one")
    assert equal(trained(spec_of(cases, threads=3), tmp_path / "threads"), whole)
    assert equal(trained(spec_of(cases, loader_workers=2), tmp_path / "workers"), whole)
    assert not equal(trained(spec_of(cases, seed=2), tmp_path / "seed"), whole)


def test_a_validation_volume_can_be_left_between_two_pieces_of_it(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a stop need not wait for the whole of a large volume; it is begun again, to the same figures."""
    spec = spec_of(cases, epochs=1)
    whole = trained(spec, tmp_path / "whole")
    monkeypatch.setattr(trainer_room, "PIECE_SECONDS", 0.0)
    assert equal(trained(spec, tmp_path / "parts", (6, 3)), whole)  # eight windows, one at a time
    with numerics("cpu", cudnn_benchmark=False):
        trainer, works = Trainer(spec, NullSink()), 0
        while not trainer.done:
            trainer.advance()
            works += 1
        trainer.close()
    assert works == 4 + 8 + 1


def test_reading_goes_on_here_when_the_processes_that_read_fail(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(spec_of(cases), tmp_path / "whole")
    real, left = PatchLoader.batches, [3]

    def batches(self: PatchLoader, order: Any, first_step: int) -> Any:
        for one in real(self, order, first_step):
            if self.plan.num_workers and (left.append(left.pop() - 1) or left[0] < 0):
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
            yield one

    monkeypatch.setattr(PatchLoader, "batches", batches)
    sink, spec = MemorySink(), spec_of(cases, loader_workers=1)
    with numerics("cpu", cudnn_benchmark=False):
        one = task(spec, tmp_path / "failing", sink)
        while not one.done:
            one.advance()
        one.close()
    assert equal(arrays_of(one.trainer), whole)
    asked, told = sink.named("STUDENT_LOADER")
    assert asked["num_workers"] == 1 and told["num_workers"] == 0 and "killed by signal" in told["reason"]


def test_a_checkpoint_holds_model_average_optimiser_scaler_and_generators(cases: list[Case], tmp_path: Path) -> None:
    sink = MemorySink()
    spec = spec_of(cases, amp=True)
    with numerics("cpu", cudnn_benchmark=False):
        one = task(spec, tmp_path, sink)
        for _ in range(3):
            one.advance()
        one.close()
    assert one.checkpoint is not None
    manifest = one.checkpoint.manifest
    assert manifest["optimizer_state"]["scheduler"]["step"] == 3 == manifest["model_state"]["iterations"]
    assert manifest["optimizer_state"]["scaler"]["scale"] > 1
    assert (manifest["epoch"], manifest["iter"], manifest["max_iter"]) == (0, 3, 4)
    assert manifest["data_cursor"]["offset"] == 3 and len(manifest["data_cursor"]["order"]["visits"]) == 6
    assert manifest["rng_state_reasons"] == {}
    assert torch.equal(torch.from_numpy(one.checkpoint.rng_state("torch")), one.trainer.dropout_rng.get_state())
    assert one.checkpoint.rng_state("python") == one.trainer.order.rng.getstate()
    assert one.checkpoint.rng_state("numpy") == one.trainer.order.seeds.bit_generator.state


def test_a_checkpoint_of_another_student_is_refused(cases: list[Case], tmp_path: Path) -> None:
    with numerics("cpu", cudnn_benchmark=False):
        one = task(spec_of(cases), tmp_path)
        one.advance()
        one.save()
        one.close()
        with pytest.raises(IncompatibleError, match="other settings or cases"):
            task(spec_of(cases, learning_rate=0.5), tmp_path)


def test_each_epoch_is_told_with_loss_f_beta_and_rate_and_the_end_too(cases: list[Case], tmp_path: Path) -> None:
    sink = MemorySink()
    spec = spec_of(cases, patience=1, min_delta=2.0, epochs=5)
    with numerics("cpu", cudnn_benchmark=False):
        one = task(spec, tmp_path, sink)
        while not one.done:
            one.advance()
        one.close()
    epochs = sink.named("STUDENT_EPOCH")
    assert [event["epoch"] for event in epochs] == [1, 2]  # the second was no better by 2.0
    for event in epochs:
        assert event["loss"] > 0 and 0 <= event["f_beta"] <= 1 and event["lr"] > 0 and event["student"] == "3d"
        assert len(event["f_beta_each"]) == 1 and event["score"] == pytest.approx(np.mean(event["f_beta_each"]))
    (stop,) = sink.named("STUDENT_EARLY_STOP")
    assert (stop["epoch"], stop["epochs"]) == (2, 5)
    assert one.record["best_epoch"] in (1, 2) and one.record["iter"] == 8


def test_the_best_epochs_average_is_what_is_kept(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.3])

    def of(counts: Any, weight: float) -> Quality:
        score = next(scores)
        return Quality(0.5, score, (score,), score)

    monkeypatch.setattr(trainer_room.Quality, "of", staticmethod(of))
    with numerics("cpu", cudnn_benchmark=False):
        trainer, averages = Trainer(spec_of(cases), NullSink()), []
        while not trainer.done:
            if trainer.advance() is not None:
                averages.append(copy.deepcopy(trainer.average.state_dict()))
        trainer.close()
    best = trainer.best.state_dict()
    assert trainer.stopping.epoch == 2
    assert all(torch.equal(best[name], averages[1][name]) for name in best)
    assert not all(torch.equal(best[name], averages[2][name]) for name in best)


def test_a_step_without_a_finite_gradient_moves_nothing_and_many_end_it(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    with numerics("cpu", cudnn_benchmark=False):
        trainer = Trainer(spec_of(cases, steps_per_epoch=100), NullSink())
        trainer.advance()
        before = {name: p.clone() for name, p in trainer.net.named_parameters()}
        monkeypatch.setattr(
            trainer_room, "sample_losses", lambda outputs, label, s: outputs[0].flatten(1).sum(1) * math.nan
        )
        trainer.advance()
        assert (trainer.skipped, trainer.updates, trainer.step) == (1, 1, 2)
        assert all(torch.equal(before[name], p) for name, p in trainer.net.named_parameters())
        for _ in range(trainer_room.HOPELESS - 2):
            trainer.advance()
        with pytest.raises(NX46Error, match="not finite"):
            trainer.advance()
        trainer.close()


def test_a_network_that_cannot_be_compiled_works_uncompiled_and_says_so(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(net: Any, **_: Any) -> Any:
        def run(*given: Any) -> Any:
            raise RuntimeError("no C++ compiler\nin sight")

        return run

    monkeypatch.setattr(compiling.torch, "compile", broken)
    sink = MemorySink()
    with numerics("cpu", cudnn_benchmark=False):
        trainer = Trainer(spec_of(cases, compile=True), sink)
        trainer.advance()
        trainer.close()
    (told,) = sink.named("STUDENT_COMPILE")
    assert told["compiled"] is False and told["reason"] == "RuntimeError: no C++ compiler"
    assert trainer.updates == 1


def test_what_can_be_compiled_is_used_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    net, sink, used = torch.nn.Linear(2, 2), MemorySink(), []
    wrapped = lambda x: (used.append(1), net(x))[1]  # noqa: E731
    monkeypatch.setattr(compiling.torch, "compile", lambda given, **_: wrapped)
    made = compiling.compiled(net, lambda forward: forward(torch.ones(1, 2)).sum().backward(), sink)
    assert made is wrapped and used and sink.named("STUDENT_COMPILE")[0]["compiled"] is True


def test_torch_is_left_as_it_was_found() -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    with numerics("cpu", cudnn_benchmark=True):
        assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    with numerics("cuda", cudnn_benchmark=True):
        assert torch.backends.cudnn.benchmark
    after = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    assert after == before


def test_rehearsing_changes_nothing(cases: list[Case]) -> None:
    with numerics("cpu", cudnn_benchmark=False):
        trainer = Trainer(spec_of(cases), NullSink())
        before, rng = copy.deepcopy(trainer.net.state_dict()), trainer.dropout_rng.get_state()
        assert trainer.rehearse() > 0
        assert all(torch.equal(before[name], value) for name, value in trainer.net.state_dict().items())
        assert torch.equal(rng, trainer.dropout_rng.get_state()) and trainer.updates == 0
        trainer.close()
