"""The student's stage: whether there is time for it, its training, and where it is stopped. Optional work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nx46vx.errors import NX46Error, StoppedError
from nx46vx.logs import say
from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.session import Session
from nx46vx.pipeline.watching import TrainWatch
from nx46vx.runtime.heartbeat import heartbeat
from search.resources import Resources
from search.student import own_device

if TYPE_CHECKING:
    from nx46vx.student.spec import StudentSpec, Variant
    from search.student import StudentJob

#: Kind of the decisions of this stage.
KIND = "student"


@dataclass(frozen=True)
class Trained:
    """``specs``: the students that are ready to be used. Not ``complete``: stopped, and to be continued."""

    complete: bool
    specs: tuple[StudentSpec, ...] = ()


def train_student(session: Session, cases: Cases, plan: FitPlan, resources: Resources, watch: TrainWatch) -> Trained:
    """Decide, and train to the end, or to where the session has to stop.

    With ``student.enabled: auto`` a student that fails is left out (``STUDENT_FAILED``), and one whose time is up ends
    with its best epoch so far; both are recorded and replayed. With ``true`` it is continued by the next session.

    Raises:
        NX46Error: it failed, and was asked for.
    """
    decisions, automatic = Decisions(session.paths.decisions), session.settings.student.enabled == "auto"
    try:
        epochs = _decide(session, cases, resources, decisions)
        if epochs is None:
            return Trained(False)
        specs = [_spec(session, cases, resources, variant, epochs) for variant in session.settings.student.variants]
        ended = decisions.get(KIND, "ended")
        if ended is not None:
            session.log.emit("STUDENT_ENDED", replayed=True, **ended)
        elif epochs:
            _train(session, plan, specs, resources, watch)
            if any(not _done(session, plan, spec) for spec in specs):
                if not automatic or session.stop():
                    return Trained(False)
                ended = _end(session, decisions, "time", session.governor.reason)
        if not epochs or (ended is not None and ended["reason"] == "failure"):
            return Trained(True)
        return Trained(True, tuple(spec for spec in specs if _usable(session, plan, spec)))
    except StoppedError:
        raise
    except (NX46Error, RuntimeError, OSError) as error:
        if not automatic:
            raise
        why = f"{type(error).__name__}: {error}"[:500]
        session.log.emit("STUDENT_FAILED", error=why)
        _end(session, decisions, "failure", why)
        say("student: it failed and is left out (STUDENT_FAILED in the events)")
        return Trained(True)


def _end(session: Session, decisions: Decisions, reason: str, why: str) -> dict[str, Any]:
    """Record that no session goes on with the training; emits ``STUDENT_ENDED``."""
    ended = {"reason": reason, "why": why}
    decisions.put(KIND, "ended", ended)
    session.log.emit("STUDENT_ENDED", replayed=False, **ended)
    return ended


def _decide(session: Session, cases: Cases, resources: Resources, decisions: Decisions) -> int | None:
    """How many epochs each student gets, 0 for none; None where a session that is being stopped leaves it to the next.

    Emits ``STUDENT_DECISION``; decided once, then replayed.
    """
    recorded = decisions.get(KIND, "decision")
    if recorded is None:
        recorded = _decision(session, cases, resources)
        if recorded is None:
            return None
        decisions.put(KIND, "decision", recorded)
        replayed = False
    else:
        replayed = True
    session.log.emit("STUDENT_DECISION", replayed=replayed, **recorded)
    say(f"student: {recorded['epochs']} epochs at most ({recorded['reason']})")
    return int(recorded["epochs"])


def _decision(session: Session, cases: Cases, resources: Resources) -> dict[str, Any] | None:
    settings, governor = session.settings.student, session.governor
    told: dict[str, Any] = {"asked": settings.enabled, "variants": list(settings.variants)}
    if settings.enabled is not True and "optional_phases_off" in governor.actions:
        return {**told, "enabled": False, "epochs": 0, "reason": "the run is late: optional phases are off"}
    no_time = {**told, "enabled": False, "epochs": 0, "reason": "no time is left"}
    if governor.stopping:
        return None if settings.enabled is True or session.stop() else no_time
    if settings.enabled is True:
        return {**told, "enabled": True, "epochs": settings.epochs, "reason": "asked for"}
    from nx46vx.student.estimate import affordable, rehearse

    per_epoch = after = 0.0
    judged = [case for role in ("validation", "holdout") for case in cases.of(role)[: settings.fusion_cases]]
    calibrated = cases.of("validation")[: session.settings.mask.calibration_volumes]
    volumes = [case.shape for case in (*judged, *calibrated, *cases.dataset.test)]
    with heartbeat(session.log, "student_estimate"):
        for variant in settings.variants:
            spec = _spec(session, cases, resources, variant, settings.epochs)
            estimate = rehearse(spec, session.log)
            per_epoch += estimate.epoch(spec)
            after = max(after, sum(estimate.volume(spec, shape) for shape in volumes))
    if session.stop():
        return None
    epochs, why = affordable(settings.epochs, per_epoch, after, governor.until_stop)
    return {**told, "enabled": epochs > 0, "epochs": epochs, **why}


def _spec(session: Session, cases: Cases, resources: Resources, variant: Variant, epochs: int) -> StudentSpec:
    from nx46vx.student.spec import StudentSpec

    settings, device = session.settings, own_device(resources)
    return StudentSpec(
        session.run_id, settings.seed, variant, settings.student, tuple(cases.of("train")),
        tuple(cases.of("validation")[: settings.student.validation_cases]), epochs, device.name,
        resources.engine_threads, device.gpus[0].index if device.gpus else 0,
    )  # fmt: skip


def _train(session: Session, plan: FitPlan, specs: list[StudentSpec], resources: Resources, watch: TrainWatch) -> None:
    from search.student import StudentJob, train_inline
    from trainables.student import StudentFactory

    governor, unfinished = session.governor, [spec for spec in specs if not _done(session, plan, spec)]
    factories = {
        str(spec.variant): StudentFactory(
            spec, plan, session.paths.root, session.fence, session.keeping, (specs.index(spec), len(specs))
        )
        for spec in unfinished
    }
    epochs: dict[str, tuple[int, float]] = {}

    def on_report(variant: str, record: Mapping[str, Any]) -> None:
        watch.student_steps += 1
        watch.student_gpu_seconds[variant] = float(record["gpu_seconds"])
        epoch, seconds = epochs.setdefault(variant, (int(record["epoch"]), float(record["seconds"])))
        if record["epoch"] > epoch:
            epochs[variant] = int(record["epoch"]), float(record["seconds"])
            session.costs.add("student_epoch", (float(record["seconds"]) - seconds) / (int(record["epoch"]) - epoch))
            say(f"student {variant}: epoch {record['epoch']}, loss {record['loss']:.4f}, F0.5 {record['f_beta']:.3f}")

    job = StudentJob(
        factories, session.paths.root, session.fence, resources, should_stop=lambda: governor.stopping,
        may_start=lambda: governor.allows("student_epoch"), on_report=on_report,
    )  # fmt: skip
    if not factories or governor.stopping:
        return
    with heartbeat(session.log, "student"):
        if session.settings.resources.executor == "ray":
            _through_tune(job, session.settings.resources.ray_address)
        else:
            train_inline(job)
    session.costs.save()


def _through_tune(job: StudentJob, address: str | None) -> None:
    from search.cluster import prepare_environment

    prepare_environment(address)
    from search.student_runner import train_through_tune

    train_through_tune(job, address)


def _state(session: Session, plan: FitPlan, spec: StudentSpec) -> Mapping[str, Any] | None:
    """``model_state`` of a student's newest checkpoint."""
    checkpoint = session.store(plan).latest(spec.owner, session.log)
    return None if checkpoint is None else checkpoint.manifest["model_state"]


def _done(session: Session, plan: FitPlan, spec: StudentSpec) -> bool:
    state = _state(session, plan, spec)
    if state is None or state["signature"] != spec.signature:
        return False
    return bool(state["epoch"] >= spec.epochs or state["stopping"]["quiet"] >= spec.settings.patience)


def _usable(session: Session, plan: FitPlan, spec: StudentSpec) -> bool:
    """Whether it has finished an epoch."""
    state = _state(session, plan, spec)
    return state is not None and state["signature"] == spec.signature and state["stopping"]["epoch"] > 0


def best_student(session: Session, plan: FitPlan, trained: Trained) -> tuple[StudentSpec, dict[str, Any]] | None:
    """The student with the best score (the first by name among equals) and its figures; None where there is none."""
    found = []
    for spec in trained.specs:
        state = _state(session, plan, spec)
        if state is not None:
            found.append((-float(state["stopping"]["best"]), spec.variant, spec, state))
    if not found:
        return None
    _, _, spec, state = min(found, key=lambda one: one[:2])
    figures = {
        "variant": spec.variant, "epochs": state["epoch"], "best_epoch": state["stopping"]["epoch"],
        "validation_score": state["stopping"]["best"], "parameters": state["parameters"],
    }  # fmt: skip
    return spec, figures
