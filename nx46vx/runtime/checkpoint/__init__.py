"""The checkpoint store: the one record that a run is resumed from."""

from nx46vx.runtime.checkpoint.audit import audit_checkpoints
from nx46vx.runtime.checkpoint.manifest import SCHEMA_VERSION
from nx46vx.runtime.checkpoint.rng import decode_state, encode_state
from nx46vx.runtime.checkpoint.store import Checkpoint, CheckpointStore

__all__ = ["SCHEMA_VERSION", "Checkpoint", "CheckpointStore", "audit_checkpoints", "decode_state", "encode_state"]
