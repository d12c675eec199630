"""A run that is to become another one: what no longer holds is set aside, and only what does not fit is trained anew.

Nothing is deleted: results, plan, decisions and checkpoints move to ``superseded/session-N/``. The log goes on, and
says what happened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nx46vx.errors import IncompatibleError, from_os_error
from nx46vx.logs import say
from nx46vx.model.candidates import Candidate
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.runtime.atomic import fsync_folder, write_bytes, write_text
from nx46vx.runtime.sink import EventSink
from nx46vx.settings import Settings

if TYPE_CHECKING:
    from nx46vx.pipeline.session import Session

#: Parts of a checkpoint's identity without which its state means something else.
_BINDING = ("features", "model_signature", "preprocessing")


def set_results_aside(
    paths: RunPaths, fence: int, log: EventSink, settings: Settings, differing: Sequence[str]
) -> None:
    """Move what the old configuration, program or dataset decided, and write the new configuration.

    The configuration comes last: killed before that, the run still differs, and the same command begins this again.
    """
    folder = paths.superseded(fence)
    log.emit("RESUME_INCOMPATIBLE", differing=list(differing), action="retrain_mismatched", kept_in=folder.name)
    log.sync()
    say(f"the run was made otherwise ({'; '.join(differing)}): what does not fit is trained anew")
    try:
        for path in (
            paths.report_json, paths.report_md, paths.submission, paths.leaderboard, paths.ensemble, paths.progress,
            paths.decisions, paths.profile, paths.plan, paths.mask_search,
        ):  # fmt: skip
            if path.exists():
                _move(path, folder)
        write_bytes(folder / paths.config.name, paths.config.read_bytes())
        write_text(paths.config, settings.as_yaml())
    except OSError as error:
        raise from_os_error(error, "setting results aside", error.filename or folder) from error


def keep_what_fits(session: Session, plan: FitPlan) -> None:
    """Before a new fit is frozen: checkpoints that it would not have made are set aside, the others are gone on from.

    Raises:
        IncompatibleError: there are some, and retraining was not asked for.
    """
    store = session.store(plan)
    known = {candidate.candidate_id: candidate for candidate in plan.candidates}
    kept, retrained, dropped = [], [], []
    for owner in store.owners():
        newest = store.latest(owner, session.log)
        if owner not in known:
            dropped.append(owner)
        elif newest is None or not _fits(session, plan, known[owner], newest.manifest):
            retrained.append(owner)
        else:
            kept.append(owner)
    if not retrained and not dropped:
        return
    if not session.retrain:
        raise IncompatibleError(
            "RESUME_INCOMPATIBLE: checkpoints here belong to another fit", where=store.root,
            found=", ".join([*retrained, *dropped][:3]), fix="pass --retrain-mismatched, or choose another --out",
        )  # fmt: skip
    session.log.emit("RETRAIN_MISMATCHED", kept=kept, retrained=retrained, dropped=dropped)
    session.log.sync()
    folder = session.paths.superseded(session.fence)
    try:
        for owner in (*retrained, *dropped):
            if (store.root / owner).exists():
                _move(store.root / owner, folder / store.root.name)
            if store.mirror is not None and (store.mirror / owner).exists():
                _move(store.mirror / owner, store.mirror.with_name(f"{store.mirror.name}-{folder.name}"))
    except OSError as error:
        raise from_os_error(error, "setting checkpoints aside", error.filename or folder) from error
    say(f"{len(kept)} candidates fit and are kept, {len(retrained)} are trained anew, {len(dropped)} are dropped")


def _fits(session: Session, plan: FitPlan, candidate: Candidate, manifest: Mapping[str, Any]) -> bool:
    """Whether this fit would have come to the very state of a checkpoint."""
    state, epochs = manifest["model_state"], session.settings.epochs.supervised_epochs
    return (
        all(manifest["identity"].get(key) == plan.identity[key] for key in _BINDING)
        and state.get("spec") == plan.spec(candidate.meta_neuron).digest
        and state.get("method") == plan.method
        and manifest["data_cursor"] == plan.data_cursor
        and (epochs == 0 or int(state.get("iterations", 0)) <= epochs * plan.max_iter)
    )


def _move(path: Path, folder: Path) -> None:
    """Move a file or folder into another folder, durably."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for parent in (folder.parent, folder.parent.parent):
            fsync_folder(parent)
    os.rename(path, folder / path.name)
    fsync_folder(folder)
    fsync_folder(path.parent)
