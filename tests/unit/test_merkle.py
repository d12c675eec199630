"""The Merkle tree against the definitions of RFC 6962, written out as plain recursion."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.events.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    root_of_leaves,
    verify_consistency,
    verify_inclusion,
)

SIZES = range(1, 34)


def h(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


def split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(entries: list[bytes]) -> bytes:
    """MTH of section 2.1."""
    if not entries:
        return h(b"")
    if len(entries) == 1:
        return h(b"\x00" + entries[0])
    k = split(len(entries))
    return h(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def entries_of(n: int) -> list[bytes]:
    return [b"line %d" % number for number in range(n)]


def leaves_of(n: int) -> list[bytes]:
    return [leaf_hash(entry) for entry in entries_of(n)]


def test_the_root_is_that_of_the_definition():
    for n in (0, *SIZES):
        assert root_of(entries_of(n)) == mth(entries_of(n)), n


def test_inclusion_proofs_are_those_of_the_definition_and_verify():
    for n in SIZES:
        leaves, root = leaves_of(n), mth(entries_of(n))
        for index in range(n):
            proof = inclusion_proof(leaves, index)
            assert proof == path(index, entries_of(n)), (n, index)
            assert verify_inclusion(leaves[index], index, n, proof, root)


def test_an_inclusion_proof_shows_nothing_else():
    for n in SIZES:
        leaves, root = leaves_of(n), mth(entries_of(n))
        for index in range(n):
            proof = inclusion_proof(leaves, index)
            assert not verify_inclusion(leaf_hash(b"other"), index, n, proof, root)
            assert not verify_inclusion(leaves[index], index, n, proof, h(b"other"))
            assert not verify_inclusion(leaves[index], index, n, [*proof, root], root)
            assert not verify_inclusion(leaves[index], n, n, proof, root)
            assert not verify_inclusion(leaves[index], -1, n, proof, root)
            if proof:
                assert not verify_inclusion(leaves[index], index, n, proof[:-1], root)
                assert not verify_inclusion(leaves[index], index, n, [h(b"x"), *proof[1:]], root)
                other = (index + 1) % n
                assert not verify_inclusion(leaves[index], other, n, proof, root)


def test_consistency_proofs_are_those_of_the_definition_and_verify():
    for n in SIZES:
        leaves, root = leaves_of(n), mth(entries_of(n))
        for m in range(1, n + 1):
            proof = consistency_proof(leaves, m)
            assert proof == subproof(m, entries_of(n), True), (m, n)
            assert verify_consistency(m, mth(entries_of(m)), n, root, proof)


def test_a_consistency_proof_shows_nothing_else():
    for n in SIZES:
        leaves, root = leaves_of(n), mth(entries_of(n))
        for m in range(1, n + 1):
            old, proof = mth(entries_of(m)), consistency_proof(leaves, m)
            assert not verify_consistency(m, h(b"other"), n, root, proof)
            assert not verify_consistency(m, old, n, h(b"other"), proof)
            assert not verify_consistency(m, old, n, root, [*proof, root])
            assert not verify_consistency(0, old, n, root, proof)
            assert not verify_consistency(n + 1, old, n, root, proof)
            if proof:
                assert not verify_consistency(m, old, n, root, proof[:-1])


def test_a_leaf_cannot_pass_for_a_node():
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert root_of_leaves([left, right]) != leaf_hash(left + right)


def test_what_is_not_there_has_no_proof():
    with pytest.raises(IndexError):
        inclusion_proof(leaves_of(3), 3)
    with pytest.raises(IndexError):
        consistency_proof(leaves_of(3), 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=90), st.data())
def test_any_entries_have_the_defined_root_and_proofs(entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    leaves = [leaf_hash(entry) for entry in entries]
    assert root_of(entries) == mth(entries)
    assert inclusion_proof(leaves, index) == path(index, entries)
    assert consistency_proof(leaves, index + 1) == subproof(index + 1, entries, True)
