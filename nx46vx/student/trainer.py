"""The training itself, one step or one validation volume at a time; all that decides the bits is in its state."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from nx46vx.errors import NX46Error
from nx46vx.model.gpu_clock import GpuClock
from nx46vx.model.metrics import Counts
from nx46vx.runtime.sink import EventSink
from nx46vx.student.channels import channel_count
from nx46vx.student.compiling import compiled
from nx46vx.student.gradients import ByMicroBatch, BySample, Gradients
from nx46vx.student.inference import moved, placed, segmenter_of, uses_amp
from nx46vx.student.loader import Batch, LoaderPlan, PatchLoader, choose_loader
from nx46vx.student.losses import sample_losses
from nx46vx.student.memory import fitting, free_bytes, saved_bytes
from nx46vx.student.order import EpochOrder
from nx46vx.student.patches import PatchSource, read_pair
from nx46vx.student.schedule import learning_rate, update_average
from nx46vx.student.spec import StudentSpec
from nx46vx.student.unet import Network, build_network
from nx46vx.student.validation import EarlyStopping, Quality, volume_counts
from nx46vx.student.windows import Segmenter

#: Steps in a row without a usable gradient after which training gives up.
HOPELESS = 50
#: Longest that a piece of a validation volume takes, in seconds, but for the windows that are in work together.
PIECE_SECONDS = 1.0


class Trainer:
    """A student in training. Needs ``numerics`` around it; ``close`` ends its threads and processes.

    ``epoch``: epochs finished. ``step``: steps done in the present one; once all are done, its validation volumes are
    next. ``updates``: optimiser steps so far (a scaler may skip some).
    """

    def __init__(self, spec: StudentSpec, sink: EventSink) -> None:
        self.spec, self._sink = spec, sink
        settings = spec.settings
        seeds = [int(s) for s in np.random.SeedSequence([spec.seed, 0x57D]).generate_state(4, np.uint64) >> 2]
        self._device = torch.device(spec.device)
        self.net: Network = placed(build_network(spec, seeds[0]), spec)
        self.average: Network = copy.deepcopy(self.net).requires_grad_(False)
        self.best: Network = copy.deepcopy(self.average)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._amp = uses_amp(spec)
        self.scaler = torch.amp.GradScaler(spec.device, enabled=self._amp)
        self.dropout_rng = torch.Generator().manual_seed(seeds[1])
        self.order = EpochOrder(len(spec.train), random.Random(seeds[2]), np.random.default_rng(seeds[3]))
        self.stopping = EarlyStopping(settings.patience, settings.min_delta)
        self.epoch = self.step = self.updates = self.skipped = self._in_a_row = 0
        self.loss_sum = self.seconds = 0.0
        self.last: dict[str, Any] = {}
        self.micro_batch: int | None = None
        self._forward: Callable[..., Any] = self.net
        self._gradients: Gradients | None = None
        self._loader: PatchLoader | None = None
        self._batches: Iterator[Batch] | None = None
        self._counts: list[Counts] = []
        self._judged: tuple[Generator[None, None, np.ndarray], np.ndarray] | None = None
        self._source = PatchSource(spec)
        self.gpu = GpuClock(self._device)
        self._threads = ThreadPoolExecutor(spec.threads, thread_name_prefix="student")

    @property
    def steps_done(self) -> int:
        return self.epoch * self.spec.settings.steps_per_epoch + self.step

    @property
    def done(self) -> bool:
        return self.epoch >= self.spec.epochs or self.stopping.over

    @property
    def at_epoch_start(self) -> bool:
        return self.step == 0

    def advance(self) -> dict[str, Any] | None:
        """One training step, or a piece of a validation volume; the epoch's figures when that was its last piece."""
        started = time.perf_counter()
        figures = None
        if self.step < self.spec.settings.steps_per_epoch:
            self._train_step()
        else:
            self._judge(started + PIECE_SECONDS)
            if len(self._counts) == len(self.spec.validation):
                figures = self._end_epoch()
        self.seconds += time.perf_counter() - started
        return figures

    def rehearse(self) -> float:
        """Fit the micro-batch, compile, and time a step on made-up patches; seconds. Changes no state."""
        settings = self.spec.settings
        channels = channel_count(settings.sides)
        image = torch.randn(settings.batch_size, channels, *self.spec.patch, generator=torch.Generator().manual_seed(0))
        label = (image[:, :1] > 1.5).to(torch.uint8)
        keep = torch.ones(settings.batch_size, self.net.net.bottleneck)
        if self._gradients is None:
            self._fit_memory(image[:1], label[:1], keep[:1])
            wanted = self.spec.device == "cuda" if settings.compile == "auto" else settings.compile
            if wanted:
                size = 1 if self.spec.device == "cpu" else self.micro_batch or 1
                sizes = {min(size, len(image)), len(image) % size} - {0}

                def once(forward: Callable[..., Any]) -> None:
                    for size in sizes:  # each is compiled for itself
                        self._losses(image[:size], label[:size], keep[:size], forward).sum().backward()

                self._forward = compiled(self.net, once, self._sink)
        seconds = 0.0
        for _ in range(2):  # the first one chooses and makes kernels
            started = time.perf_counter()
            self._gradient(image, label, keep, torch.ones((), device=self._device)).sum().item()
            seconds = time.perf_counter() - started
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    def segmenter(self, net: Network) -> Segmenter:
        """Whole volumes through one of the networks."""
        return segmenter_of(net, self.spec, self._threads, 2 * (self.micro_batch or 1))

    def close(self) -> None:
        self._batches = None
        if self._loader is not None:
            self._loader.close()
        self._threads.shutdown()

    def _train_step(self) -> None:
        settings = self.spec.settings
        if self._gradients is None:
            self._start()
        assert self._loader is not None
        if self.step == 0 and self._batches is None:
            self.order.begin(settings.steps_per_epoch // settings.patches_per_visit * settings.batch_size)
        if self._batches is None:
            self._batches = self._loader.batches(self.order, self.step)
        image, label = self._next_batch()
        keep = self._keep(len(image))
        with self.gpu.running():
            scale = self.scaler.scale(torch.ones((), device=self._device))
            losses = self._gradient(image, label, keep, scale)
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip_norm)
            usable = bool(torch.isfinite(norm))
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(self.steps_done)
            if usable:
                self.scaler.step(self.optimizer)
            self.scaler.update()
        self._took(usable, float(losses.mean()))
        if self.step == settings.steps_per_epoch:
            self._batches = None

    def _next_batch(self) -> Batch:
        """The next batch; where the processes that read it fail, it and all that follow are read in this one."""
        assert self._loader is not None and self._batches is not None
        try:
            return next(self._batches)
        except RuntimeError as error:
            if not self._loader.plan.num_workers:
                raise
            reason = f"the processes failed: {(str(error).splitlines() or [''])[0][:200]}"
        self._loader.close()
        plan = LoaderPlan(pin_memory=self._loader.plan.pin_memory)
        self._loader = PatchLoader(self.spec, plan, self._source)
        self._batches = self._loader.batches(self.order, self.step)
        self._sink.emit("STUDENT_LOADER", **asdict(plan), persistent_workers=False, reason=reason, timed=[])
        return next(self._batches)

    def _judge(self, until: float) -> None:
        """Go on with the present validation volume until it is done or the time is up; a volume that is not done when
        the session ends is begun again by the next."""
        if self._judged is None:
            image, label = read_pair(self.spec.validation[len(self._counts)])
            self._judged = self.segmenter(self.average).pieces(image), np.asarray(label)
        pieces, label = self._judged
        try:
            while True:
                next(pieces)
                if time.perf_counter() >= until:
                    return
        except StopIteration as over:
            self._counts.append(volume_counts(over.value, label))
            self._judged = None

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted over all epochs from 0."""
        settings = self.spec.settings
        return learning_rate(step, self.spec.total_steps, settings.learning_rate, settings.warmup_share)

    def _took(self, usable: bool, loss: float) -> None:
        """Count a step; an unusable one moved nothing."""
        self.step += 1
        if usable:
            self.updates += 1
            self.loss_sum += loss
            self._in_a_row = 0
            update_average(self.average, self.net, self.spec.settings.ema_decay, self.updates)
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= HOPELESS:
            raise NX46Error(
                "the student's gradient is not finite, again and again", where=self.spec.owner,
                found=f"{self._in_a_row} steps in a row", fix="lower student.learning_rate, or set student.amp: false",
            )  # fmt: skip

    def _end_epoch(self) -> dict[str, Any]:
        quality = Quality.of(self._counts, self.spec.settings.stability_weight)
        taken = max(self.spec.settings.steps_per_epoch - self.skipped, 1)
        rate = self._rate(self.steps_done - 1)
        self.epoch, self.step, self._counts = self.epoch + 1, 0, []
        if self.stopping.saw(self.epoch, quality.score):
            self.best.load_state_dict(self.average.state_dict())
        self.last = {
            "epoch": self.epoch, "epochs": self.spec.epochs, "loss": self.loss_sum / taken, **quality.to_json(),
            "lr": rate, "skipped_steps": self.skipped, "best_epoch": self.stopping.epoch, "quiet": self.stopping.quiet,
        }  # fmt: skip
        self.loss_sum, self.skipped = 0.0, 0
        return self.last

    def _start(self) -> None:
        """Before the first step of a session: memory, compilation, and how patches are read."""
        settings = self.spec.settings
        seconds = self.rehearse()
        trial = EpochOrder(len(self.spec.train), random.Random(0), np.random.default_rng(0))
        trial.begin(4 * settings.batch_size)
        plan = choose_loader(
            self.spec, list(trial.groups(settings.batch_size)), seconds * settings.patches_per_visit, self._sink,
            self._source,
        )  # fmt: skip
        self._loader = PatchLoader(self.spec, plan, self._source)

    def _fit_memory(self, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor) -> None:
        """Samples at once, by what one keeps for its backward pass; emits ``STUDENT_MICRO_BATCH``."""
        per_patch = saved_bytes(lambda: self._losses(image, label, keep))
        available, on_cpu = free_bytes(self.spec.device), self.spec.device == "cpu"
        fits = fitting(per_patch, self.net, available, self.spec.settings.batch_size)
        given = self.spec.settings.micro_batch
        if given != "auto":
            self.micro_batch = min(given, self.spec.settings.batch_size)
        elif self.micro_batch is None or on_cpu:  # else an earlier session's: on a GPU the last bits depend on it
            self.micro_batch = fits
        threads = min(self.spec.threads, self.micro_batch)
        self._sink.emit(
            "STUDENT_MICRO_BATCH", micro_batch=self.micro_batch, threads=threads if on_cpu else None,
            bytes_per_patch=per_patch, available_bytes=available,
            reason="what fits" if given == "auto" else "asked for",
        )  # fmt: skip
        parameters = list(self.net.parameters())
        if on_cpu:
            self._threads.shutdown()
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix="student")
            self._gradients = BySample(parameters, self._threads)
        else:
            self._gradients = ByMicroBatch(parameters, self.micro_batch, self._sink)

    def _gradient(
        self, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        assert self._gradients is not None
        losses = self._gradients(self._losses, image, label, keep, scale)
        if isinstance(self._gradients, ByMicroBatch):
            self.micro_batch = self._gradients.size
        return losses

    def _losses(
        self, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, forward: Callable[..., Any] | None = None
    ) -> torch.Tensor:
        with torch.autocast(self.spec.device, enabled=self._amp):
            outputs = (self._forward if forward is None else forward)(moved(image, self.spec), keep.to(self._device))
        return sample_losses(outputs, label.to(self._device, non_blocking=True), self.spec.settings)

    def _keep(self, size: int) -> torch.Tensor:
        """Factors of the bottleneck's channels: 0 with the dropout's probability, else what keeps the mean."""
        share = self.spec.settings.dropout
        drawn = torch.rand(size, self.net.net.bottleneck, generator=self.dropout_rng)
        return (drawn >= share).float() / (1.0 - share)
