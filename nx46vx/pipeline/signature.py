"""What of this program decides the meaning of a checkpoint: the feature pool, its code, and the model's state."""

from __future__ import annotations

from nx46vx.features.pool import POOL_VERSION, feature_names
from nx46vx.runtime.digest import digest_json

#: Changes when the meaning of a lane's state changes.
MODEL_SIGNATURE = "quadratic-neuron-1"


def program_identity() -> dict[str, str]:
    """Digests and versions that a checkpoint has to share with the program that continues it."""
    return {
        "features": digest_json([POOL_VERSION, *feature_names()]),
        "model_signature": MODEL_SIGNATURE,
        "preprocessing": f"pool-{POOL_VERSION}",
    }
