"""The mask search's study: Optuna's TPE in synchronous batches, over a text journal that is replayed on resume.

Each batch has a sampler of its own, seeded by the batch's number, and is drawn whole before any of it is scored. So
what is drawn depends on the results of the batches before and on nothing else: not on the order in which trials end,
nor on where a session ended. On resume the study is made anew, trial by trial, and the journal's results are taken
where the same parameters are drawn.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.runtime.atomic import fsync_folder
from search.mask_space import drawn, start_values

STUDY = "masks"
_RESULT, _RULE, _BINDING = "result", "rule", "binding"
_SPAWN = 0x6D61736B
#: Trials below which importance says nothing.
_LEAST = 8

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Draw:
    """A trial to be scored: its number and the rule as plain data."""

    number: int
    rule: dict[str, Any]


class _Held:
    """The journal's lock: the run directory is held by this process, no other writes there."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class MaskStudy:
    """Trials of the mask search in one journal.

    Args:
        path: the journal; replayed if it belongs to this search, replaced if it does not.
        start: the rule of trial 0.
        thresholds: whether thresholds may move too.
        binding: digest of all that a trial's result depends on.
        trials: how many there are to be; ``batch``: drawn together.
    """

    def __init__(
        self, path: Path, *, start: MaskRule, thresholds: bool, binding: str, seed: int, batch: int, trials: int
    ) -> None:
        self._start, self._thresholds, self._seed = start, thresholds, seed
        self.batch, self.trials = batch, trials
        path.parent.mkdir(parents=True, exist_ok=True)
        known = read_results(path, binding)
        part = path.with_name(f".{path.name}.tmp")
        part.unlink(missing_ok=True)
        self._study = optuna.create_study(storage=_storage(part), study_name=STUDY, direction="maximize")
        self._study.set_user_attr(_BINDING, binding)
        self._study.enqueue_trial(start_values(start, thresholds=thresholds))
        self.waiting: list[Draw] = []
        self.replayed = 0
        while not self.waiting and self.asked < trials and (self.asked == 0 or known):
            for draw in self.ask():
                values, result = known.pop(draw.number, (None, None))
                if result is not None and values == self._study.trials[draw.number].params:
                    self.tell(draw, result)
                    self.replayed += 1
                else:
                    self.waiting.append(draw)
        os.replace(part, path)
        fsync_folder(path.parent)
        self._study = optuna.load_study(storage=_storage(path), study_name=STUDY)

    @property
    def asked(self) -> int:
        """Trials drawn so far."""
        return len([one for one in self._study.get_trials(deepcopy=False) if one.state != TrialState.WAITING])

    def ask(self) -> list[Draw]:
        """Draw the next batch; none of those before may be unscored."""
        first = self.asked
        seed = np.random.SeedSequence(self._seed, spawn_key=(_SPAWN, first // self.batch)).generate_state(1)[0]
        self._study.sampler = optuna.samplers.TPESampler(
            seed=int(seed), n_startup_trials=max(2 * self.batch, 8), multivariate=True, constant_liar=True
        )
        draws = []
        for _ in range(min(self.batch, self.trials - first)):
            trial = self._study.ask()
            rule = drawn(trial, self._start, thresholds=self._thresholds).to_json()
            trial.set_user_attr(_RULE, rule)
            draws.append(Draw(trial.number, rule))
        return draws

    def tell(self, draw: Draw, result: Mapping[str, Any]) -> None:
        """Record a trial's result."""
        trial = self._study.get_trials(deepcopy=False)[draw.number]
        self._study._storage.set_trial_user_attr(trial._trial_id, _RESULT, dict(result))
        self._study.tell(draw.number, float(result["score"]))

    def results(self) -> dict[int, dict[str, Any]]:
        """Of each scored trial, by number: ``rule``, ``params`` and what ``tell`` was told."""
        return {
            one.number: {_RULE: one.user_attrs[_RULE], "params": one.params, **one.user_attrs[_RESULT]}
            for one in self._study.get_trials(states=(TrialState.COMPLETE,))
        }

    def importance(self, trials: int) -> dict[str, float]:
        """How much each parameter decides whether a trial is among the best, by PED-ANOVA over the first trials."""
        chosen = [one for one in self._study.get_trials(states=(TrialState.COMPLETE,)) if one.number < trials]
        if len(chosen) < _LEAST or len({one.value for one in chosen}) < 2:
            return {}
        study = optuna.create_study(direction="maximize")
        study.add_trials(chosen)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = get_param_importances(study, evaluator=evaluator)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def read_results(path: Path, binding: str | None = None) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Parameters and result of each scored trial in a journal; none where it is damaged or another search's."""
    if not path.is_file():
        return {}
    try:
        study = optuna.load_study(storage=_storage(path), study_name=STUDY)
        if binding is not None and study.user_attrs.get(_BINDING) != binding:
            return {}
        return {
            one.number: (one.params, dict(one.user_attrs[_RESULT]))
            for one in study.get_trials(states=(TrialState.COMPLETE,))
        }
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
        return {}


def _storage(path: Path) -> JournalStorage:
    lock: Any = _Held()  # Optuna's class for locks is not public
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
