"""The compiled kernel: true figures, a lane's bits that depend on nothing else, and torch where it cannot be had."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import Problem, make_data, make_specs, names

from nx46vx.model import kernel_cpu, kernel_ir, kernel_passes
from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_layout import BLOCK, CHUNK_MAX, STEP
from nx46vx.model.kernel_plan import find_runs, plan_blocks
from nx46vx.model.metrics import count_at_thresholds, cross_entropy
from nx46vx.model.neuron import NeuronSpec, bootstrap, neuron_logits
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData, cut
from nx46vx.runtime.digest import digest_array
from nx46vx.runtime.numeric import ARITHMETIC

Open = Callable[..., Passes]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes passes that know some meta-neurons, and closes them at the end."""
    made: list[Passes] = []

    def make(data: FitData, specs: list[NeuronSpec], *, kernel: str = "llvm", **how) -> Passes:
        passes = Passes(data, seed=0, **how)
        made.append(passes)
        for spec in specs:
            passes.add(spec)
        assert passes.kernel == kernel, passes.kernel_reason
        return passes

    yield make
    for passes in made:
        passes.close()


@pytest.fixture(scope="module")
def data() -> FitData:
    return make_data((900, 1300), 8, chunk=400, validation=500, intercept=-0.7)


@pytest.fixture(scope="module")
def specs(data: FitData) -> list[NeuronSpec]:
    return make_specs(data, neurons=2, width=6)


def random_thetas(specs: list[NeuronSpec], seed: int = 0, strength: float = 0.4) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {spec.meta_neuron: strength * rng.standard_normal((spec.columns, TILE)) for spec in specs}


def mask(*lanes: int) -> np.ndarray:
    return np.isin(np.arange(TILE), lanes)


def figures(passes: Passes, thetas: dict[int, np.ndarray], lanes: dict[int, np.ndarray] | None = None):  # type: ignore[no-untyped-def]
    """Everything that a pass finds, per meta-neuron and with the lanes last."""
    found = {}
    training, validation = passes.gradients(thetas, lanes), passes.validate(thetas, lanes)
    for k in thetas:
        mean, counts = validation[k]
        tables = [np.stack([c.true_positives for c in counts], -1), np.stack([c.false_positives for c in counts], -1)]
        found[k] = [*training[k], mean, *tables]
    return found


def same_bits(
    one: list[np.ndarray], other: list[np.ndarray], at: object = slice(None), of: object = slice(None)
) -> bool:
    return all(np.array_equal(a[..., at], b[..., of]) for a, b in zip(one, other, strict=True))


# True figures


@pytest.mark.parametrize("width", [1, 3, 6, 8])
@pytest.mark.parametrize("groups", [1, 8, 300])
def test_loss_and_gradient_are_those_of_float64(opened: Open, width: int, groups: int) -> None:
    data = make_data((300, 1111), 8, chunk=700, groups=groups)
    specs = make_specs(data, neurons=2, width=width)
    thetas = random_thetas(specs)
    found = opened(data, specs).gradients(thetas)
    for spec in specs:
        problem, (loss, gradient) = Problem.of(spec, data), found[spec.meta_neuron]
        theta = thetas[spec.meta_neuron]
        for lane in range(TILE):
            truth = problem.gradient(theta[:, lane])
            assert loss[lane] == pytest.approx(problem.loss(theta[:, lane]), rel=1e-5)
            assert np.abs(gradient[:, lane] - truth).max() < 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("width", [1, 6])
def test_validation_is_that_of_float64(opened: Open, data: FitData, width: int) -> None:
    specs = make_specs(data, neurons=2, width=width)
    thetas = random_thetas(specs)
    found, (case,) = opened(data, specs).validate(thetas), data.validation
    for spec in specs:
        raw, f = case.features[data.rows(spec.view)], width
        mean, counts = found[spec.meta_neuron]
        clear = 0
        for lane in range(TILE):
            z = neuron_logits(spec, thetas[spec.meta_neuron][:, lane], raw[:f], raw[f:])
            assert mean[lane] == pytest.approx(cross_entropy(z, case.y).mean(), rel=1e-5)
            low, high = (count_at_thresholds(1 / (1 + np.exp(-z - nudge)), case.y) for nudge in (-1e-5, 1e-5))
            for got, least, most in (
                (counts[lane].true_positives, low.true_positives, high.true_positives),
                (counts[lane].false_positives, low.false_positives, high.false_positives),
            ):
                assert np.all((least <= got) & (got <= most))
                clear += int((least == most).sum())
            assert (counts[lane].positives, counts[lane].negatives) == (low.positives, low.negatives)
        assert clear > 0.99 * 2 * 19 * TILE  # away from ties, that is nearly everywhere, the counts are exact


def test_confident_logits_lose_nothing(opened: Open, data: FitData, specs: list[NeuronSpec]) -> None:
    theta = np.zeros((specs[0].columns, TILE))
    theta[-1] = np.linspace(-300, 300, TILE)
    loss, gradient = opened(data, specs).gradients({0: theta})[0]
    problem = Problem.of(specs[0], data)
    with np.errstate(over="ignore"):
        truth = [(problem.loss(theta[:, lane]), problem.gradient(theta[:, lane])) for lane in range(TILE)]
    np.testing.assert_allclose(loss, [value for value, _ in truth], rtol=1e-6)
    np.testing.assert_allclose(gradient, np.stack([value for _, value in truth], axis=1), atol=1e-6)


def test_a_lane_that_diverged_says_so_and_spares_the_others(
    opened: Open, data: FitData, specs: list[NeuronSpec]
) -> None:
    passes, thetas = opened(data, specs), random_thetas(specs)
    before = figures(passes, thetas)
    thetas[1][3, 5] = np.nan
    after = figures(passes, thetas)
    assert np.isnan(after[1][0][5]) and np.isnan(after[1][1][:, 5]).all() and np.isnan(after[1][2][5])
    others = ~mask(5)
    assert same_bits(before[0], after[0]) and same_bits(before[1], after[1], others, others)


def test_samples_that_are_not_drawn_are_never_read(opened: Open) -> None:
    data = make_data((900, 1300), 6, chunk=400)
    specs, thetas = make_specs(data, neurons=1), random_thetas(make_specs(data, neurons=1))
    before = opened(data, specs).gradients(thetas)[0]
    drawn = bootstrap(data, 0, 0)
    spoilt = 0
    for case, groups in zip(data.train, data.train_groups[0], strict=True):
        case.features[:, drawn[groups] == 0] = np.nan
        spoilt += int((drawn[groups] == 0).sum())
    assert spoilt > 300
    assert same_bits(before, opened(data, specs).gradients(thetas)[0])


# A lane's bits


@pytest.mark.parametrize("width", [1, 3, 6, 8])
def test_a_lanes_bits_depend_on_no_other_lane_and_not_on_its_place(opened: Open, data: FitData, width: int) -> None:
    specs = make_specs(data, neurons=1, width=width)
    passes, theta = opened(data, specs), random_thetas(specs)[0]
    whole = figures(passes, {0: theta})[0]
    for lane in range(TILE):
        alone = figures(passes, {0: theta}, {0: mask(lane)})[0]
        assert same_bits(whole, alone, [lane], [lane])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order, wanted = rng.permutation(TILE), mask(*rng.permutation(TILE)[: 4 + seed])
        moved = figures(passes, {0: theta[:, order]}, {0: wanted})[0]
        assert same_bits(whole, moved, order[wanted], wanted)


def test_a_lanes_bits_depend_on_no_other_tile(opened: Open, data: FitData, specs: list[NeuronSpec]) -> None:
    thetas = random_thetas(specs)
    passes = opened(data, specs)
    together, reverse = figures(passes, thetas), figures(passes, {k: thetas[k] for k in (1, 0)})
    for k in (0, 1):
        alone = figures(opened(data, [specs[k]]), {k: thetas[k]})
        assert same_bits(together[k], alone[k]) and same_bits(together[k], reverse[k])


def test_bits_do_not_depend_on_the_threads(opened: Open) -> None:
    data = make_data((40_000, 30_001), 6, chunk=1024, validation=20_000)  # enough for threads to meet
    specs = make_specs(data, neurons=2, width=6)
    thetas = random_thetas(specs)
    one = figures(opened(data, specs), thetas)
    for threads in (2, 3):
        passes = opened(data, specs, threads=threads)
        for _ in range(5):
            many = figures(passes, thetas)
            assert all(same_bits(one[k], many[k]) for k in thetas)


def test_bits_do_not_depend_on_how_the_arrays_lie_in_memory(opened: Open) -> None:
    data = make_data((900, 1300), 5, chunk=400)
    specs = make_specs(data, neurons=1)
    thetas = random_thetas(specs)
    plain = figures(opened(data, specs), thetas)
    for case in (*data.train, *data.validation):
        case.features, case.y = np.asfortranarray(case.features), np.repeat(case.y, 3)[::3]
    assert same_bits(plain[0], figures(opened(data, specs), thetas)[0])
    for case in (*data.train, *data.validation):  # rows with something between them, that start off any bound
        rows = np.zeros((case.features.shape[0], case.features.shape[1] + 7), np.float32)
        rows[:, 3:-4] = case.features
        case.features, case.y = rows[:, 3:-4], case.y.astype(bool)
    assert same_bits(plain[0], figures(opened(data, specs), thetas)[0])


HERE = kernel_cpu.host()
FUSED = HERE.width >= 8 and HERE.fused


@pytest.mark.skipif(not FUSED, reason="needs a processor with AVX2 and FMA")
@pytest.mark.parametrize("width", [4, 8])
def test_narrower_registers_give_the_same_bits(
    opened: Open, monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec], width: int
) -> None:
    thetas = random_thetas(specs)
    native = figures(opened(data, specs), thetas)
    other = kernel_ir.Machine("haswell", "", width, 16, True)
    monkeypatch.setattr(kernel_passes, "compiled", lambda f: kernel_cpu.compiled(f, other))
    narrow = figures(opened(data, specs), thetas)
    assert all(same_bits(native[k], narrow[k]) for k in thetas)


@pytest.mark.skipif(not FUSED, reason="needs a processor with AVX2 and FMA")
def test_the_bits_are_those_of_the_arithmetic_that_plans_name(specs: list[NeuronSpec]) -> None:
    """Other bits need another number: a run that is continued must say that it was begun with other sums."""
    rng, size = np.random.default_rng(46), 3 * BLOCK + 37
    case = make_data((size,), 6).train[0]
    case.features[:] = rng.integers(-16, 16, case.features.shape) / 8
    case.y[:] = rng.integers(0, 2, size)
    plain = replace(specs[0], view=names(6), shift=(0.25,) * 18, scale=(1.5,) * 18)
    passes = kernel_passes.KernelPasses(FitData(names(6), [case], [case]))
    passes.add(plain, np.arange(passes.data.train_groups[1]) % 3)
    loss, gradient = passes.gradients({0: np.add.outer(np.arange(-9, 10), np.arange(TILE)) / 64})[0]
    passes.close()
    assert (ARITHMETIC, digest_array(np.vstack([loss, gradient]))[:16]) == (2, "0a24335c84ccd20d")


@pytest.mark.skipif(not FUSED, reason="needs an x86 processor")
def test_a_processor_that_does_not_fuse_gives_the_same_figures(
    opened: Open, monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    thetas = random_thetas(specs)
    native = figures(opened(data, specs), thetas)[0]
    monkeypatch.setattr(
        kernel_passes, "compiled", lambda f: kernel_cpu.compiled(f, kernel_ir.Machine("nehalem", "", 4, 16, False))
    )
    plain = figures(opened(data, specs), thetas)[0]
    for one, other in zip(native[:3], plain[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# The order of the samples


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3000), st.booleans())
def test_every_drawn_sample_is_in_one_block_of_its_weight(seed: int, groups: int, chunk: int, scattered: bool) -> None:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, groups, rng.integers(1, 2500)) for _ in range(3)]
    cases = make_data((1,), 1).train * 3
    sized = [replace(case, y=np.zeros(group.size, np.uint8)) for case, group in zip(cases, ids, strict=True)]
    if not scattered:
        ids = [np.sort(group) for group in ids]
    multiplicity, chunks = rng.poisson(1.0, groups), cut(sized, chunk)
    plan = plan_blocks(find_runs(ids, chunks), multiplicity, len(chunks))
    seen = [np.zeros(group.size, np.int64) for group in ids]
    padding = np.zeros(len(chunks))
    for number, part in enumerate(chunks):
        for first, last, count, weight in plan.blocks[plan.bounds[number] : plan.bounds[number + 1]]:
            assert 0 < count <= BLOCK and plan.pieces[first:last, 1].sum() == count
            padding[number] += weight * (-count % STEP)
            for start, length in plan.pieces[first:last]:
                assert part.start <= start and start + length <= part.stop
                seen[part.case][start : start + length] += weight
    for group, found in zip(ids, seen, strict=True):
        assert np.array_equal(found, multiplicity[group])
    assert np.array_equal(plan.padding, padding)
    assert plan.weight == sum(found.sum() for found in seen)


# Where the kernel cannot be had


def close_to_torch(opened: Open, passes: Passes, data: FitData, specs: list[NeuronSpec]) -> bool:
    thetas = random_thetas(specs)
    torch = opened(data, specs, prefer="torch", kernel="torch")
    one, other = passes.gradients(thetas), torch.gradients(thetas)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for k in thetas for a, b in zip(one[k], other[k], strict=True))


def test_without_llvmlite_torch_does_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    assert close_to_torch(opened, opened(data, specs), data, specs)
    monkeypatch.setitem(sys.modules, "nx46vx.model.kernel_passes", None)
    passes = opened(data, specs, kernel="torch")
    assert "kernel_passes" in passes.kernel_reason
    assert close_to_torch(opened, passes, data, specs)


def test_a_neuron_that_does_not_compile_takes_all_to_torch(
    opened: Open, monkeypatch: pytest.MonkeyPatch, data: FitData, specs: list[NeuronSpec]
) -> None:
    def broken(features: int) -> None:
        raise RuntimeError("LLVM ran out of patience")

    passes = opened(data, specs[:1])
    monkeypatch.setattr(kernel_passes, "compiled", broken)
    passes.add(specs[1])
    assert passes.kernel == "torch" and "ran out of patience" in passes.kernel_reason
    assert close_to_torch(opened, passes, data, specs)


def test_machine_code_that_computes_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ir, "EXP2", (0.6931470036506653, 0.25))
    with pytest.raises(RuntimeError, match="off by"):
        kernel_cpu.compiled.__wrapped__(2)


def test_chunks_too_long_to_count_go_to_torch(opened: Open) -> None:
    data = make_data((64,), 2, validation=CHUNK_MAX + 1, chunk=2 * CHUNK_MAX)
    passes = opened(data, [], kernel="torch")
    assert str(CHUNK_MAX + 1) in passes.kernel_reason


def test_the_longest_chunk_counts_right(opened: Open) -> None:
    data = make_data((640,), 2, validation=CHUNK_MAX, chunk=CHUNK_MAX)
    specs = make_specs(data, neurons=1, width=1)
    theta = np.zeros((specs[0].columns, TILE))
    theta[-1] = 100.0
    (_, counts) = opened(data, specs).validate({0: theta}, {0: mask(2)})[0]
    assert counts[2].true_positives.tolist() == [counts[2].positives] * 19
    assert counts[2].false_positives.tolist() == [counts[2].negatives] * 19


def test_a_fit_on_the_cpu_does_not_load_torch() -> None:
    program = """
import sys
sys.path.insert(0, "tests/unit")
from model_samples import make_data, make_specs
import numpy as np
from nx46vx.model.passes import Passes
data = make_data((300,), 3)
passes = Passes(data, seed=0)
spec, = make_specs(data, neurons=1)
passes.add(spec)
passes.gradients({0: np.zeros((spec.columns, 16))})
print(passes.kernel, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.split() == ["llvm", "False"]
