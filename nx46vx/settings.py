"""Every knob, its type and its range. YAML < environment (``NX46VX_*``) < flags; anything unknown is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nx46vx.errors import UsageError, from_os_error

ENV_PREFIX = "NX46VX_"
MAX_YAML_BYTES, MAX_YAML_DEPTH = 64 << 10, 16
_UNREADABLE = (yaml.YAMLError, ValueError, OverflowError, RecursionError)
GRID_L1 = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRID_L2 = (1e-4, 1e-3, 1e-2)
GRID_META_NEURONS = 9
GRID_MAX_ITER = 120

#: Features in the pool; a view cannot be wider.
POOL_SIZE = 24

Auto = Literal["auto"]
#: ``most_memory``: the largest GPU first; ``most_free``: the emptiest first; ``index``: as the driver counts them.
GpuPolicy = Literal["most_memory", "most_free", "index"]
Penalty = Annotated[float, Field(gt=0, le=10)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=False)


class SyntheticSettings(_Section):
    """The volumes that a run makes for itself when it is given no dataset."""

    train_cases: int = Field(8, ge=3, le=2000, description="number of labelled volumes")
    test_cases: int = Field(2, ge=1, le=2000, description="number of test volumes")
    size: int = Field(64, ge=48, le=320, description="edge of each cubic volume, in voxels")
    scrolls: int = Field(4, ge=1, le=64, description="number of different scrolls the volumes come from")
    seed: int = Field(0, ge=0, description="seed of the generator")


class DataSettings(_Section):
    dir: Path | None = Field(None, description="dataset in the competition's layout; empty: make synthetic volumes")
    synthetic: SyntheticSettings = SyntheticSettings()
    validation_fraction: float = Field(0.2, gt=0, lt=0.5, description="share of the pairs that ranks candidates")
    holdout_fraction: float = Field(0.15, gt=0, lt=0.5, description="share of the pairs that is only reported")
    preflight_fraction: float = Field(0.05, gt=0, le=1, description="share of files read before any long work")
    max_pairs: int | None = Field(None, ge=3, description="use at most this many pairs; empty: all of them")
    max_pairs_reason: str = Field("", description="why not all pairs are used; required with max_pairs")
    skip_cases: tuple[str, ...] = Field((), description="case ids to leave out, for instance damaged ones")

    @model_validator(mode="after")
    def _reasoned(self) -> DataSettings:
        if self.max_pairs is not None and not self.max_pairs_reason.strip():
            raise ValueError("max_pairs leaves pairs out, so max_pairs_reason has to say why")
        return self


class FeatureSettings(_Section):
    max_samples_per_volume: int = Field(40_000, ge=100, le=10_000_000, description="training voxels per case")
    validation_samples_per_volume: int = Field(
        40_000, ge=100, le=40_000_000, description="voxels per validation or hold-out case, at natural prevalence"
    )
    block: int = Field(160, ge=32, le=1024, description="edge of the blocks a volume is processed in, in voxels")
    cache_dir: Path | None = Field(None, description="feature cache; empty: ~/.cache/nx46vx/features")
    workers: Auto | Annotated[int, Field(ge=1, le=256)] = Field("auto", description="cases computed at once")
    store: Literal["npy", "zarr"] = Field("npy", description="how the cache keeps features: mapped, or compressed")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what computes them; auto: the GPU of resources.device if it gives the CPU's bits"
    )


class GridSettings(_Section):
    meta_neurons: int = Field(GRID_META_NEURONS, ge=1, le=1000)
    l1: tuple[Penalty, ...] = Field(GRID_L1, min_length=1)
    l2: tuple[Penalty, ...] = Field(GRID_L2, min_length=1)
    max_iter: int = Field(GRID_MAX_ITER, ge=1, le=1_000_000, description="iterations per candidate and epoch")
    features_per_neuron: int = Field(6, ge=1, le=POOL_SIZE, description="F, the width of a meta-neuron's view")

    @model_validator(mode="after")
    def _distinct(self) -> GridSettings:
        for name in ("l1", "l2"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names the same value twice")
        if len(self.l1) * len(self.l2) > 16:
            pairs = len(self.l1) * len(self.l2)
            raise ValueError(f"{pairs} l1 x l2 pairs; a meta-neuron's candidates have to fit one tile of 16 lanes")
        return self


class SolverSettings(_Section):
    method: Literal["fista", "ista"] = Field("fista", description="fista restarts adaptively; ista is the plain one")
    block_iterations: int = Field(
        10, ge=1, le=1000, description="most iterations the engine advances at a time; it hands out every tenth anyway"
    )


class GrowthSettings(_Section):
    enabled: bool = Field(True, description="add meta-neurons beyond the grid while they pay")
    max_meta_neurons: int = Field(16, ge=1, le=1000)
    min_gain_se: float = Field(1.0, ge=0, description="least validation gain of the last neuron, in standard errors")
    max_gap_se: float = Field(1.0, ge=0, description="largest train-to-validation gap, in standard errors")


class EpochSettings(_Section):
    supervised_epochs: int = Field(1, ge=0, le=10_000, description="passes over the grid; 0: until convergence")
    convergence_min_delta: float = Field(1e-4, ge=0, description="improvement of the best objective that counts")
    convergence_patience: int = Field(2, ge=1, description="epochs without such an improvement before the end")


class ResourceSettings(_Section):
    """How the work is run. Nothing here changes a result."""

    executor: Literal["ray", "inline"] = "ray"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Auto | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="most GPUs that are used")
    gpu_policy: GpuPolicy = Field("most_memory", description="which GPUs come first, where there are several")
    gpus_per_trial: Auto | Annotated[float, Field(ge=1e-4, le=1)] = Field(
        "auto", description="share of a GPU that a trial takes up: so many run at once; auto: all in flight fit"
    )
    mixed_precision: Literal["auto", "off"] = Field(
        "auto", description="auto: TF32 products on a GPU if the objective stays the same to 1e-5 of itself"
    )
    compile: bool = Field(False, description="torch.compile on a GPU; falls back by itself")
    cuda_graphs: bool = Field(False, description="passes as CUDA graphs; falls back by itself")
    trials_in_flight: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    engine_threads: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    ray_address: str | None = Field(None, description="address of a running Ray cluster; empty: a local one")
    node_cache_dir: Path | None = Field(
        None, description="feature cache on the cluster's other nodes; empty: the same path as here"
    )


class CheckpointSettings(_Section):
    """Where checkpoints are kept. Changes no result."""

    mirror: Path | None = Field(
        None, description="second place for every checkpoint, e.g. a notebook's output folder; empty: none"
    )


class MaskSearchSettings(_Section):
    """The search over the mask's parameters, by the competition's score of validation volumes."""

    trials: int = Field(48, ge=0, le=100_000, description="parameter sets that are tried; 0: none, no search")
    batch: int = Field(4, ge=1, le=1000, description="trials that are drawn together, before any of them is scored")


class MaskSettings(_Section):
    """From probability to mask. A step is off at 0; ``slice_support`` at false, ``max_doubt`` at 1,
    ``max_disagreement`` at 0.5."""

    strong_th: Auto | Annotated[float, Field(gt=0, lt=1)] = Field("auto", description="hysteresis seed threshold")
    weak_th: Auto | Annotated[float, Field(gt=0, lt=1)] = Field("auto", description="hysteresis growth threshold")
    thresholds: Literal["volume", "global"] = Field(
        "volume", description="auto thresholds follow each volume's own distribution, or are the same for all"
    )
    doubt_weight: float = Field(0.5, ge=0, le=2, description="how far doubt lowers the surface expected of a volume")
    max_doubt: float = Field(
        0.98, gt=0, le=1, description="share of the probable surface, the surest, that may be seed"
    )
    max_disagreement: float = Field(0.45, gt=0, le=0.5, description="largest minority of members at a seed")
    z_radius: int = Field(1, ge=0, le=8, description="closing radius along z, in voxels")
    xy_radius: int = Field(1, ge=0, le=8, description="closing radius along y and x, in voxels")
    slice_gap: int = Field(1, ge=0, le=8, description="missing slices that are bridged along z")
    slice_support: bool = Field(True, description="drop what a single slice shows and its neighbours do not")
    split_levels: int = Field(3, ge=0, le=16, description="thresholds that take touching sheets apart")
    split_min_size: int = Field(400, ge=1, description="voxels of the smallest part that counts as a sheet")
    tunnel_radius: int = Field(2, ge=0, le=8, description="widest tunnel through a sheet that is plugged, in voxels")
    hole_size: int = Field(1000, ge=0, description="largest enclosed void that is filled, in voxels")
    border: int = Field(3, ge=0, le=32, description="voxels cleared at each face of the volume")
    dust_min_size: int = Field(64, ge=0, description="components with fewer voxels are dropped")
    calibration_volumes: int = Field(2, ge=1, description="validation volumes that choose thresholds and parameters")
    keep_maps: bool = Field(True, description="keep the members' deviation and disagreement of each test volume")
    search: MaskSearchSettings = MaskSearchSettings()

    @model_validator(mode="after")
    def _ordered(self) -> MaskSettings:
        if self.strong_th != "auto" and self.weak_th != "auto" and self.weak_th > self.strong_th:
            raise ValueError("weak_th has to be at most strong_th")
        return self


class StudentSettings(_Section):
    """The student: a residual U-Net that may be fused with the ensemble. ``docs/student.md`` tells of each key."""

    enabled: Literal["auto"] | bool = Field(False, description="auto: where the time left after the search allows it")
    variants: tuple[Literal["3d", "2.5d"], ...] = Field(("3d",), min_length=1, description="the best one is used")
    base_channels: int = Field(16, ge=2, le=256, description="channels at the finest level; doubled at each next one")
    levels: int = Field(4, ge=1, le=6, description="resolutions of the U-Net")
    block_convolutions: int = Field(2, ge=1, le=4, description="convolutions of each residual block")
    cell: int = Field(1, ge=1, le=4, description="voxels along each axis that the finest level works on at once")
    multi_scale: bool = Field(False, description="every encoder level sees the input at its own scale too")
    attention: bool = Field(False, description="spatial and depth attention in the encoder")
    context_slices: int = Field(7, ge=1, le=31, description="2.5d: slices that one slice is judged by; odd")
    sides: bool = Field(True, description="the network sees the slope across the sheets, its sign settled per volume")
    patch: tuple[int, int, int] = Field((64, 64, 64), description="3d: training patch and window, (z, y, x) voxels")
    slab: tuple[int, int, int] = Field((8, 128, 128), description="2.5d: training patch and window, (z, y, x) voxels")
    batch_size: int = Field(4, ge=1, le=1024, description="patches of different cases in one step")
    micro_batch: Auto | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="patches in memory at once; auto: as many of a batch as fit"
    )
    patches_per_visit: int = Field(4, ge=1, le=256, description="patches cut from a case each time it is read")
    steps_per_epoch: int = Field(200, ge=1, le=1_000_000)
    epochs: int = Field(60, ge=1, le=100_000)
    learning_rate: float = Field(2e-3, gt=0, le=1)
    weight_decay: float = Field(1e-2, ge=0, le=1)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="of the averaged weights, which are the ones used")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the bottleneck's channels left out of a sample")
    topology_loss: Literal["none", "cldice", "skeleton_recall"] = "none"
    topology_weight: float = Field(0.5, ge=0, le=10, description="beside Dice and cross-entropy of weight 1")
    deep_supervision: bool = True
    surface_share: float = Field(0.7, ge=0, le=1, description="share of the patches centred on a surface voxel")
    symmetries: Literal["none", "axial", "all"] = Field(
        "axial", description="axial: those that keep the z axis; all: for volumes whose scroll axis points anywhere"
    )
    intensity_noise: float = Field(0.1, ge=0, le=1, description="random gain, offset and noise, in grey-value scales")
    amp: Auto | bool = Field("auto", description="mixed precision with a gradient scaler; auto: on a GPU")
    channels_last: bool = True
    compile: Auto | bool = Field("auto", description="torch.compile; auto: on a GPU; falls back by itself")
    cudnn_benchmark: bool = True
    loader_workers: Auto | Annotated[int, Field(ge=0, le=256)] = Field("auto", description="auto: by a timed probe")
    validation_cases: int = Field(4, ge=1, description="validation volumes that each epoch is judged on")
    patience: int = Field(10, ge=1, description="epochs without a better score before the end")
    min_delta: float = Field(1e-3, ge=0, description="improvement of the score that counts")
    stability_weight: float = Field(0.5, ge=0, description="score: mean F0.5 minus this times its spread over volumes")
    checkpoint_steps: int = Field(100, ge=1, description="steps between two checkpoints; also at each epoch's end")
    overlap: float = Field(0.5, ge=0, le=0.9, description="share by which windows overlap when a volume is segmented")
    tta: Auto | bool = Field("auto", description="test-time augmentation; auto: where it gains on validation")
    fusion_cases: int = Field(8, ge=1, description="validation cases that the fusion is fitted and judged on")
    fusion_min_gain: float = Field(0.002, ge=0, le=1, description="least mean gain in F0.5 over the ensemble alone")

    @model_validator(mode="after")
    def _divisible(self) -> StudentSettings:
        step = self.cell * 2 ** (self.levels - 1)
        for name, edges in (("patch", self.patch), ("slab", self.slab[1:])):
            if any(edge % step or edge < 2 * step for edge in edges):
                raise ValueError(
                    f"{name} {edges} has to be at least two times, and a multiple of, cell * 2^(levels - 1) = {step}"
                )
        if self.context_slices % 2 == 0 or self.slab[0] < 1:
            raise ValueError("context_slices has to be odd, and slab at least one slice deep")
        if self.steps_per_epoch % self.patches_per_visit:
            raise ValueError("steps_per_epoch has to be a multiple of patches_per_visit")
        if len(set(self.variants)) != len(self.variants):
            raise ValueError("variants names the same one twice")
        return self


class BudgetSettings(_Section):
    """When this session has to be over. Changes no result."""

    hours: float = Field(9.0, gt=0, le=10_000, description="time for one session")
    session_start: Literal["auto", "process"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="unix time the budget counts from; auto: a hosted notebook's start, else this process's"
    )
    heartbeat_seconds: float = Field(10.0, ge=5, le=15, description="time between two budget and progress events")


class Settings(_Section):
    """One run's configuration. ``reduced`` tells whether it cuts what is never to be cut."""

    seed: int = Field(0, ge=0, le=2**63 - 1)
    strict_numeric: bool = Field(False, description="refuse to continue a run in another numeric environment")
    allow_reduced: bool = Field(False, description="permit a smaller grid or fewer iterations; marks every output")
    data: DataSettings = DataSettings()
    features: FeatureSettings = FeatureSettings()
    grid: GridSettings = GridSettings()
    solver: SolverSettings = SolverSettings()
    growth: GrowthSettings = GrowthSettings()
    epochs: EpochSettings = EpochSettings()
    resources: ResourceSettings = ResourceSettings()
    mask: MaskSettings = MaskSettings()
    student: StudentSettings = StudentSettings()
    budget: BudgetSettings = BudgetSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()

    def as_yaml(self) -> str:
        """The resolved configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @property
    def iterations(self) -> int:
        """Iterations of one candidate over all epochs; over one where they are open-ended."""
        return self.grid.max_iter * max(self.epochs.supervised_epochs, 1)

    @property
    def reduced(self) -> bool:
        grid = self.grid
        return (
            grid.meta_neurons < GRID_META_NEURONS
            or not set(GRID_L1) <= set(grid.l1)
            or not set(GRID_L2) <= set(grid.l2)
            or grid.max_iter < GRID_MAX_ITER
        )

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if self.reduced and not self.allow_reduced:
            raise ValueError(
                "the grid (9 meta-neurons x 5 l1 x 3 l2) and max_iter >= 120 may not be cut; "
                "allow_reduced: true permits it for tests and marks every output REDUCED"
            )
        if self.growth.enabled and self.growth.max_meta_neurons < self.grid.meta_neurons:
            raise ValueError("growth.max_meta_neurons has to be at least grid.meta_neurons")
        return self


#: Keys that say how the work is run, not what comes out; a resumed run may change them freely.
EXECUTION_KEYS = (
    "strict_numeric",
    "resources",
    "budget",
    "checkpoints",
    "features.cache_dir",
    "features.workers",
    "features.block",
    "features.store",
    "features.device",
    "data.dir",
    "student.loader_workers",
    "student.checkpoint_steps",
)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def result_keys(settings: Settings) -> dict[str, Any]:
    """The flat configuration without what only says how the work is run: equal values give equal results.

    Where no student is asked for, nothing that describes one is among them.
    """
    flat = flatten(settings.model_dump(mode="json"))
    left_out = EXECUTION_KEYS if settings.student.enabled is not False else (*EXECUTION_KEYS, "student")
    return {
        key: value
        for key, value in flat.items()
        if not any(key == skip or key.startswith(f"{skip}.") for skip in left_out)
    }


def load_settings(
    path: Path | None, *, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read a YAML file, lay the environment and then the overrides (dotted keys) over it, and check the whole.

    Environment: ``NX46VX_GRID__MAX_ITER=240`` sets ``grid.max_iter``. Values of both are parsed as YAML scalars.

    Raises:
        UsageError: unreadable file, bad YAML, unknown key, wrong type or impossible value; names each key's path.
    """
    merged: dict[str, Any] = _read_yaml(path) if path is not None else {}
    for name, raw in sorted((environ if environ is not None else os.environ).items()):
        if name.startswith(ENV_PREFIX):
            dotted = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            _put(merged, dotted, parse_scalar(raw, name), f"environment variable {name}")
    for dotted, value in (overrides or {}).items():
        _put(merged, dotted, value, f"--set {dotted}")
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'] if not _is_branch(part)) or 'configuration'}: "
            f"{item['msg']} (found {_shown(item['input'])})"
            if item["type"] != "value_error"
            else f"{'.'.join(map(str, item['loc'])) or 'configuration'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()[:20]
        ]
        raise UsageError(
            "the configuration is not valid", where=path or "defaults, environment and flags",
            found="; ".join(lines), fix="correct the keys named above; docs/usage.md lists every key",
        ) from None  # fmt: skip


def _is_branch(part: object) -> bool:
    """Whether a location part is pydantic's name of a union branch rather than a key."""
    return isinstance(part, str) and (part.startswith(("literal[", "constrained-")) or part in {"int", "float"})


def _shown(value: Any) -> str:
    try:
        return repr(value)[:200]
    except ValueError:  # a whole number of thousands of digits
        return f"a huge {type(value).__name__}"


def parse_scalar(raw: str, where: str) -> Any:
    try:
        value = yaml.load(raw, Loader=_StrictLoader)
    except _UNREADABLE as error:
        raise UsageError("the value cannot be read", where=where, found=raw, fix="write a YAML value") from error
    if isinstance(value, str):  # YAML 1.1 takes 1e-4 for a word
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError("the configuration file is not there", where=path, fix="check --config") from error
    except OSError as error:
        raise from_os_error(error, "reading the configuration", path) from error
    if len(raw) > MAX_YAML_BYTES:
        raise UsageError(
            "the configuration is too large", where=path, found=f"more than {MAX_YAML_BYTES} bytes",
            fix="docs/usage.md lists every key",
        )  # fmt: skip
    try:
        values = yaml.load(raw.decode(), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise UsageError("the configuration is no text", where=path, found=error, fix="pass a YAML file") from error
    except _UNREADABLE as error:
        raise UsageError(
            "the configuration is not valid YAML", where=path, found=" ".join(str(error).split()), fix="mend it there"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError("the configuration is no mapping of keys", where=path, found=type(values).__name__)
    return values


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key written twice, references and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:  # they unfold without end
            raise yaml.composer.ComposerError(None, None, "references are not read", event.start_mark)
        if self.depth >= MAX_YAML_DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _put(tree: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *branches, leaf = dotted.split(".")
    node = tree
    for branch in branches:
        child = node.setdefault(branch, {})
        if child is None:
            child = node[branch] = {}
        if not isinstance(child, dict):
            raise UsageError("this key has no keys below it", where=where, found=dotted, fix="check the key's path")
        node = child
    node[leaf] = value
