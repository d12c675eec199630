"""A trial of the mask search as a Ray Tune ``Trainable``: a thin adapter, reused for one rule after another."""

from __future__ import annotations

from typing import Any

import orjson
from ray import tune

from nx46vx.errors import NX46Error, failure_fields
from trainables.mask_task import MaskVolumes


class MaskTrial(tune.Trainable):
    """One trial, one rule. ``config`` is ``{"number", "rule"}``; both ways the figures travel as JSON, to the bit."""

    def setup(self, config: dict[str, Any], *, volumes: MaskVolumes) -> None:  # type: ignore[override]
        self._volumes, self._rule = volumes, str(config["rule"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._rule = str(new_config["rule"])
        return True

    def step(self) -> dict[str, Any]:
        try:
            result = self._volumes.score(orjson.loads(self._rule))
        except NX46Error as error:  # trying again would not help: report it instead of failing
            return {"mask_score": float("nan"), "done": True, "failure": failure_fields(error)}
        return {"mask_score": result["score"], "result": orjson.dumps(result).decode(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial is one step."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, likewise."""
