"""The passes of a GPU, on torch's CPU: true figures, bits that depend on nothing else, and options that fall back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import Problem, make_data, make_specs

from nx46vx.errors import EnvironmentFault
from nx46vx.model import gpu_resident, gpu_trials, passes_gpu
from nx46vx.model.candidates import TILE
from nx46vx.model.gpu_options import CurvesInUse, Graphs, Products, plain_curves
from nx46vx.model.gpu_resident import BLOCK, Resident
from nx46vx.model.neuron import NeuronSpec, bootstrap
from nx46vx.model.notes import Notes
from nx46vx.model.options import EngineOptions
from nx46vx.model.passes import Passes
from nx46vx.model.passes_gpu import GpuPasses
from nx46vx.model.samples import FitData

SIZES = (3000, 9001, 700, 5000)


@pytest.fixture(scope="module")
def data() -> FitData:
    return make_data(SIZES, 8, validation=6000, chunk=2048, intercept=-0.7, groups=40)


@pytest.fixture(scope="module")
def specs(data: FitData) -> list[NeuronSpec]:
    return make_specs(data, neurons=3, width=4)


def made(data: FitData, specs: list[NeuronSpec], **how: Any) -> GpuPasses:
    passes = GpuPasses(data, device="cpu", **how)
    for spec in specs:
        passes.add(spec, bootstrap(data, 0, spec.meta_neuron))
    return passes


def random_thetas(specs: list[NeuronSpec], strength: float = 0.4) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {spec.meta_neuron: strength * rng.standard_normal((spec.columns, TILE)) for spec in specs}


@contextmanager
def kernel(data: FitData, specs: list[NeuronSpec]) -> Iterator[Passes]:
    passes = Passes(data, seed=0)
    for spec in specs:
        passes.add(spec)
    assert passes.kernel == "llvm"
    yield passes
    passes.close()


# True figures


@pytest.mark.parametrize("groups", [1, 8, 300])
def test_loss_and_gradient_are_those_of_float64(groups: int) -> None:
    data = make_data(SIZES, 8, groups=groups)
    specs = make_specs(data, neurons=2, width=6)
    thetas = random_thetas(specs)
    found = made(data, specs).gradients(thetas)
    for spec in specs:
        problem, (loss, gradient) = Problem.of(spec, data), found[spec.meta_neuron]
        for lane in range(TILE):
            theta = thetas[spec.meta_neuron][:, lane]
            truth = problem.gradient(theta)
            assert loss[lane] == pytest.approx(problem.loss(theta), rel=1e-5)
            assert np.abs(gradient[:, lane] - truth).max() < 1e-5 * np.abs(truth).max()


def test_everything_agrees_with_the_cpus_kernel(data: FitData, specs: list[NeuronSpec]) -> None:
    thetas, gpu = random_thetas(specs), made(data, specs)
    with kernel(data, specs) as cpu:
        trained, expected = gpu.gradients(thetas), cpu.gradients(thetas)
        checked, told = gpu.validate(thetas), cpu.validate(thetas)
    for k in thetas:
        for one, other in zip(trained[k], expected[k], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(checked[k][0], told[k][0], rtol=1e-5)
        for mine, theirs in zip(checked[k][1], told[k][1], strict=True):
            assert (mine.positives, mine.negatives) == (theirs.positives, theirs.negatives)
            assert np.abs(mine.true_positives - theirs.true_positives).max() <= 2  # a logit at a threshold
            assert np.abs(mine.false_positives - theirs.false_positives).max() <= 2


def test_confident_logits_stay_finite_and_true(data: FitData, specs: list[NeuronSpec]) -> None:
    theta = np.zeros((specs[0].columns, TILE))
    theta[-1] = np.linspace(-300, 300, TILE)
    loss, gradient = made(data, specs[:1]).gradients({0: theta})[0]
    problem = Problem.of(specs[0], data)
    with np.errstate(over="ignore"):
        truth = [(problem.loss(theta[:, lane]), problem.gradient(theta[:, lane])) for lane in range(TILE)]
    np.testing.assert_allclose(loss, [value for value, _ in truth], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient, np.stack([value for _, value in truth], axis=1), atol=1e-5)


# A lane's bits


def test_bits_depend_on_no_other_tile_and_no_other_lane(data: FitData, specs: list[NeuronSpec]) -> None:
    thetas, passes = random_thetas(specs), made(data, specs)
    together = passes.gradients(thetas)
    for k in thetas:
        alone = passes.gradients({k: thetas[k]})
        assert all(np.array_equal(a, b) for a, b in zip(together[k], alone[k], strict=True))
    changed = {k: theta.copy() for k, theta in thetas.items()}
    changed[1][:, 1:] *= 2.0
    other = passes.gradients(changed)
    assert np.array_equal(other[1][0][0], together[1][0][0])
    assert np.array_equal(other[1][1][:, 0], together[1][1][:, 0])
    assert not np.array_equal(other[1][0][1], together[1][0][1])


def test_the_size_of_the_chunks_changes_nothing_but_rounding(data: FitData, specs: list[NeuronSpec]) -> None:
    thetas = random_thetas(specs)
    whole = made(data, specs).gradients(thetas)
    for chunk in (1, 5):
        cut = made(data, specs, chunk_blocks=chunk).gradients(thetas)
        for k in thetas:
            for one, other in zip(whole[k], cut[k], strict=True):
                np.testing.assert_allclose(one, other, rtol=5e-6, atol=1e-8)


# The memory


def test_resident_blocks_hold_every_sample_of_every_case_once(data: FitData) -> None:
    resident = Resident(data.train, 16, torch.device("cpu"))
    assert resident.blocks == -(-sum(SIZES) // BLOCK) and int(resident.valid.sum()) == sum(SIZES)
    joined = np.concatenate([case.features for case in data.train], axis=1)
    blocks = torch.tensor([0, 2, resident.blocks - 1])
    rows = np.array([3, 15, 0])
    out = torch.empty((blocks.numel() * rows.size, BLOCK))
    resident.gather(resident.piece_numbers(blocks, rows), out)
    padded = np.zeros((16, resident.blocks * BLOCK), np.float32)
    padded[:, : joined.shape[1]] = joined
    for place, row in enumerate(rows):
        for number, block in enumerate(blocks.tolist()):
            expected = padded[row, block * BLOCK : (block + 1) * BLOCK]
            assert np.array_equal(out[place * blocks.numel() + number].numpy(), expected)
    assert np.array_equal(resident.y.reshape(-1)[: sum(SIZES)].numpy(), np.concatenate([c.y for c in data.train]))


def test_blocks_that_a_bootstrap_did_not_draw_are_never_touched(specs: list[NeuronSpec]) -> None:
    data = make_data(SIZES, 8, validation=6000, groups=2)  # groups of thousands of samples: whole blocks are left out
    multiplicity = np.zeros(data.train_groups[1], np.int64)
    multiplicity[0] = 3
    passes = GpuPasses(data, device="cpu")
    passes.add(specs[0], multiplicity)
    (part,) = passes._tiles[0].parts
    drawn = int((data.train_groups[0][0] == 0).sum())
    assert part.blocks.numel() == -(-drawn // BLOCK) < passes._train.blocks
    assert float(part.weight.sum()) == 3.0 * drawn


def test_features_that_do_not_fit_are_gathered_from_the_host(
    monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    def full(*shape: Any, **how: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.51 GiB\nand more")

    thetas, fits = random_thetas(specs), made(data, specs)
    monkeypatch.setattr(passes_gpu, "Resident", lambda *given: Resident(*given, allocate=full))
    notes = Notes()
    streamed = made(data, specs, notes=notes)
    one, other = fits.gradients(thetas), streamed.gradients(thetas)
    assert all(np.array_equal(a, b) for k in thetas for a, b in zip(one[k], other[k], strict=True))
    told = notes.take()
    assert [(event, fields["option"], fields["samples"]) for event, fields in told] == [
        ("GPU_OPTION_FALLBACK", "resident", "training"), ("GPU_OPTION_FALLBACK", "resident", "validation"),
    ]  # fmt: skip
    assert "Tried to allocate" in told[0][1]["reason"] and "\n" not in told[0][1]["reason"]


def test_a_gpu_without_any_room_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, data: FitData) -> None:
    def broken(*given: Any) -> Resident:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nhint")

    monkeypatch.setattr(passes_gpu, "Resident", broken)
    with pytest.raises(EnvironmentFault, match="no kernel image") as caught:
        GpuPasses(data, device="cpu")
    assert caught.value.exit_code == 7 and "hint" not in str(caught.value)


# Options


class Rounding(Products):
    """Products whose reduced form rounds the weights to some bits, in place of a GPU's TF32."""

    def __init__(self, bits: int) -> None:
        super().__init__(torch.device("cpu"))
        self.bits, self.on = bits, False

    @property
    def available(self) -> bool:
        return True

    @contextmanager
    def _set(self, reduced: bool) -> Iterator[None]:
        before, self.on = self.on, reduced
        yield
        self.on = before

    def rounded(self, weights: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return weights
        mantissa, exponent = torch.frexp(weights)
        return torch.ldexp((mantissa * 2**self.bits).round() / 2**self.bits, exponent)


@pytest.mark.parametrize(("bits", "allowed"), [(20, True), (6, False)])
def test_reduced_products_are_used_only_if_the_objective_agrees(
    data: FitData, specs: list[NeuronSpec], bits: int, allowed: bool
) -> None:
    notes = Notes()
    passes = made(data, specs, options=EngineOptions(mixed_precision=True), notes=notes)
    passes._products = products = Rounding(bits)
    real: Callable[..., torch.Tensor] = passes._tile_sums
    passes._tile_sums = lambda tile, weights: real(tile, products.rounded(weights))  # type: ignore[method-assign]
    thetas = random_thetas(specs)
    found = passes.gradients(thetas)
    ((event, fields),) = notes.take()
    assert event == "GPU_PRECISION_DECISION"
    assert fields["mode"] == ("tf32" if allowed else "float32") and fields["limit"] == 1e-5
    assert (fields["relative_difference"] < 1e-5) == allowed and fields["relative_difference"] > 0
    plain = made(data, specs).gradients(thetas)
    same = all(np.array_equal(a, b) for k in thetas for a, b in zip(found[k], plain[k], strict=True))
    assert same is not allowed
    passes.gradients(thetas)
    assert notes.take() == []  # decided once


def test_the_same_tile_decides_whoever_asks_first(
    monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    """A resumed search, and a second engine, begin with other tiles."""
    tried: list[int] = []
    monkeypatch.setattr(
        gpu_trials, "try_reduced_precision", lambda products, sums, tile, notes: tried.append(tile.spec.meta_neuron)
    )
    for asked in (specs, specs[::-1], specs[-1:]):
        passes = made(data, specs, options=EngineOptions(mixed_precision=True))
        passes.gradients(random_thetas(asked))
    assert tried == [min(spec.meta_neuron for spec in specs)] * 3


def test_where_there_is_no_reduced_precision_none_is_used(data: FitData, specs: list[NeuronSpec]) -> None:
    notes = Notes()
    passes = made(data, specs, options=EngineOptions(mixed_precision=True), notes=notes)
    passes.gradients(random_thetas(specs))
    assert notes.take() == [("GPU_PRECISION_DECISION", {"mode": "float32", "reason": "this device has no TF32"})]


def test_a_compiler_that_fails_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    def broken(*given: Any, **how: Any) -> None:
        raise RuntimeError("Cannot find a working triton installation")

    monkeypatch.setattr(torch, "compile", broken)
    notes = Notes()
    passes = made(data, specs, options=EngineOptions(compile=True), notes=notes)
    thetas = random_thetas(specs)
    found, plain = passes.gradients(thetas), made(data, specs).gradients(thetas)
    assert all(np.array_equal(a, b) for k in thetas for a, b in zip(found[k], plain[k], strict=True))
    ((event, fields),) = notes.take()
    assert (event, fields["option"]) == ("GPU_OPTION_FALLBACK", "compile") and "triton" in fields["reason"]


@pytest.mark.parametrize("wrong", [False, True])
def test_compiled_curves_are_used_only_if_they_are_right(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    def compiled(curves: Any, **how: Any) -> Any:
        return lambda z, weight: tuple(part * (1.01 if wrong else 1.0) for part in curves(z, weight))

    monkeypatch.setattr(torch, "compile", compiled)
    notes = Notes()
    made_of = gpu_trials.try_compiling(plain_curves, torch.ones(64), notes)
    assert (made_of is plain_curves) is wrong
    assert notes.take()[0][0] == ("GPU_OPTION_FALLBACK" if wrong else "GPU_OPTION_DECISION")


def test_compiled_curves_that_fail_later_are_left_then_and_named_once(
    monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    """The trial is the first call; the third one spoils its argument before it fails. No figure shows it."""
    calls: list[int] = []

    def compiled(curves: Any, **how: Any) -> Any:
        assert how["fullgraph"], "torch would give up without a word"

        def run(z: torch.Tensor, weight: torch.Tensor) -> Any:
            calls.append(z.shape[1])
            if len(calls) >= 3:
                z.zero_()
                raise RuntimeError("Hard failure due to fullgraph=True\nand more")
            return curves(z, weight)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    notes, thetas = Notes(), random_thetas(specs)
    passes = made(data, specs, options=EngineOptions(compile=True), notes=notes)
    found, plain = passes.gradients(thetas), made(data, specs).gradients(thetas)
    assert all(np.array_equal(a, b) for k in thetas for a, b in zip(found[k], plain[k], strict=True))
    (tried, _), (event, fields) = notes.take()
    assert (tried, event) == ("GPU_OPTION_DECISION", "GPU_OPTION_FALLBACK")
    assert fields == {"option": "compile", "reason": "RuntimeError: Hard failure due to fullgraph=True"}
    again = passes.gradients(thetas)
    assert all(np.array_equal(a, b) for k in thetas for a, b in zip(again[k], plain[k], strict=True))
    assert len(calls) == 3 and notes.take() == []


def test_an_error_of_the_plain_curves_is_no_fallback() -> None:
    notes = Notes()

    def broken() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CurvesInUse(notes).of(broken, torch.ones(4))
    assert notes.take() == []


def test_graphs_that_cannot_be_recorded_are_left_out_and_named() -> None:
    notes = Notes()
    graphs = Graphs(torch.device("cpu"), notes)
    for factor in (2.0, 3.0):
        assert torch.equal(graphs.run((0,), torch.full((2,), factor), lambda w: 5 * w), torch.full((2,), 5 * factor))
    ((event, fields),) = notes.take()  # once, not at every pass
    assert (event, fields["option"]) == ("GPU_OPTION_FALLBACK", "cuda_graphs") and fields["reason"]


def test_recorded_graphs_get_new_weights_at_each_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph computes from the memory that it was recorded with: the weights have to be put there."""

    class Graph:
        def __init__(self, given: torch.Tensor, found: torch.Tensor) -> None:
            self.given, self.found = given, found

        def replay(self) -> None:
            self.found.copy_(5 * self.given)

    def record(self: Graphs, weights: torch.Tensor, work: Any) -> Any:
        given, found = weights.clone(), work(weights)
        return Graph(given, found), given, found

    monkeypatch.setattr(Graphs, "_record", record)
    graphs = Graphs(torch.device("cpu"), Notes())
    for factor in (2.0, 3.0):
        assert torch.equal(graphs.run((0,), torch.full((2,), factor), lambda w: 5 * w), torch.full((2,), 5 * factor))


def test_a_block_is_no_longer_than_what_float32_sums_bear() -> None:
    assert gpu_resident.BLOCK <= 1 << 14
