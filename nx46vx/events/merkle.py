"""Merkle tree of RFC 6962 (sections 2.1 to 2.1.2) with SHA-512: root, inclusion proof, consistency proof.

Leaf hash: H(0x00 || entry). Node hash: H(0x01 || left || right). A tree of n > 1 entries splits at the largest power of
two below n. The root of no entries is H(""). Proofs are lists of digests, verified without the entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

_sha512 = hashlib.sha512


def leaf_hash(entry: bytes) -> bytes:
    return _sha512(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha512(b"\x01" + left + right).digest()


def root_of(entries: Iterable[bytes]) -> bytes:
    """Root over entries (64 bytes)."""
    return root_of_leaves([_sha512(b"\x00" + entry).digest() for entry in entries])


def root_of_leaves(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes: level by level, an odd last node moves up unchanged (the same tree as the RFC's)."""
    if not leaves:
        return _sha512().digest()
    level = list(leaves)
    while len(level) > 1:
        pairs = [_sha512(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        if len(level) & 1:
            pairs.append(level[-1])
        level = pairs
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path of leaf ``index``: the siblings from the leaf up to the root.

    Raises:
        IndexError: no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of a tree of {len(leaves)}")
    path: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = _parents(level)
        index >>= 1
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` shows that leaf hash ``leaf`` stands at ``index`` in the tree of ``size`` with ``root``."""
    if not 0 <= index < size:
        return False
    node, last, steps = leaf, size - 1, iter(proof)
    while last:
        if index & 1:
            sibling = next(steps, None)
            if sibling is None:
                return False
            node = node_hash(sibling, node)
        elif index < last:
            sibling = next(steps, None)
            if sibling is None:
                return False
            node = node_hash(node, sibling)
        index >>= 1
        last >>= 1
    return next(steps, None) is None and node == root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """Proof that the tree of the first ``old_size`` leaves is a prefix of the tree of all.

    Raises:
        IndexError: ``old_size`` is not in 1..len(leaves).
    """
    if not 1 <= old_size <= len(leaves):
        raise IndexError(f"tree of {old_size} before a tree of {len(leaves)}")
    return _subproof(list(leaves), old_size, True)


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the tree (``size``, ``root``) extends the tree (``old_size``, ``old_root``)."""
    if not 1 <= old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    steps = list(proof)
    if old_size & (old_size - 1) == 0:  # the old tree is one whole subtree of the new one
        steps.insert(0, old_root)
    if not steps:
        return False
    index, last = old_size - 1, size - 1
    while index & 1:
        index >>= 1
        last >>= 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while index and not index & 1:
                index >>= 1
                last >>= 1
        else:
            new = node_hash(new, step)
        index >>= 1
        last >>= 1
    return last == 0 and old == old_root and new == root


def _parents(level: list[bytes]) -> list[bytes]:
    parents = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
    return [*parents, level[-1]] if len(level) & 1 else parents


def _subproof(leaves: list[bytes], old_size: int, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 2.1.2; ``whole``: the old tree's root is known to the verifier."""
    if old_size == len(leaves):
        return [] if whole else [root_of_leaves(leaves)]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old_size <= split:
        return [*_subproof(leaves[:split], old_size, whole), root_of_leaves(leaves[split:])]
    return [*_subproof(leaves[split:], old_size - split, False), root_of_leaves(leaves[:split])]
