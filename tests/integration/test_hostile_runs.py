"""A run directory that was tampered with: each file is refused by name and reason, or made anew; never a fault."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import Ended, tiny_settings, write_config

from nx46vx.pipeline.planning import plan

SECONDS, MEGABYTES = 5.0, 512
DEEP = 100_000

#: What is no JSON object of ours, whatever the file.
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "other bytes": b"\xff\xfe\x00",
    "NUL": bytes(99),
    "brackets": b"[" * DEEP + b"]" * DEEP,
    "braces": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a key twice": b'{"run_id": "a", "run_id": "b"}',
    "NaN": b'{"run_id": NaN}',
    "infinity": b'{"run_id": 1e400}',
    "5000 digits": b'{"run_id": ' + b"9" * 5000 + b"}",
    "an unknown version": b'{"plan_version": 99, "run_id": 5}',
}
YAML: dict[str, bytes] = {
    "a bomb of references": b"\n".join(
        [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        + [b"a%d: &a%d [%b]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)]
    ),
    "a merge of itself": b"a: &a\n  <<: *a\n",
    "a Python object": b'!!python/object/apply:os.system ["touch tampered"]',
    "a Python name": b"seed: !!python/name:os.system",
    "brackets": b"[" * 60_000,
    "braces": b"{a: " * 10_000,
    "5000 digits": b"seed: " + b"9" * 5000,
    "a number of 50,000 digits": b"seed: 0x" + b"f" * 50_000,
    "a number in sixties": b"seed: " + b"1:" * 20_000 + b"1",
    "a list for a key": b"[1]: 2",
    "a key twice": b"seed: 1\nseed: 1\n",
    "an unknown key": b"sed: 1",
    "infinity": b"budget: {hours: .inf}",
    "NUL": b"seed: \0",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "no text": b"\xff\xfe",
    "20 MB": b"#" * (20 << 20),
    "10,000 values": b"a: [" + b"1," * 10_000 + b"]",
}
RECORDS = ("plan.json", "run.json", "decisions.json", "report.json", "ensemble.json", "progress.json", "costs.json",
           "run.lock", "run.lock.fence", "LATEST_VALID_CKPT", "events/run_seal.json")  # fmt: skip
#: Files without which a run cannot go on, so that it refuses; the others are made anew.
NEEDED = ("config.yaml", "plan.json", "run.json", "decisions.json")
#: Files that say nothing of the result; nothing vouches for them.
FREE = ("progress.json", "costs.json", "run.lock", "run.lock.fence", "LATEST_VALID_CKPT")

#: Runs the commands of each line of stdin and says how they ended; once one made a run of it, the peak counts.
CHILD = """
import contextlib, io, json, os, resource, sys, time
from pathlib import Path
from nx46vx.cli.main import main

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) << 10

def call(command):
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    return {"code": code, "out": out.getvalue()[-2000:], "err": err.getvalue(), "seconds": time.monotonic() - began}

before = None
for line in sys.stdin:
    if before is None:
        call(json.loads(line))
        before = status("VmHWM")
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (6 << 30),) * 2)  # threads reserve much of it
    print(json.dumps({**call(json.loads(line)), "grown": status("VmHWM") - before}), flush=True)
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """One process that runs commands in turn; its first look is at a sound run."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(*command: object) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        child.stdin.flush()
        ended: dict[str, Any] = json.loads(child.stdout.readline())
        assert ended["code"] != 1 and "Traceback" not in ended["err"], (command, ended["err"])
        assert ended["grown"] < MEGABYTES << 20
        return ended

    yield call
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run that was planned only."""
    root = tmp_path_factory.mktemp("planned") / "run"
    plan(tiny_settings(tiny_data), root)
    return root


@pytest.fixture
def options(tmp_path: Path, tiny_data: Path) -> list[object]:
    return ["--config", write_config(tmp_path / "tiny.yaml"), "--data", tiny_data, "--out", tmp_path / "run"]


def copied(source: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(source, tmp_path / "run")
    return tmp_path / "run"


def refused(ended: dict[str, Any], path: Path, *, code: int = 5) -> None:
    assert ended["code"] == code and path.name in ended["err"], (path, ended)
    assert "Found:" in ended["err"] and "Fix:" in ended["err"], ended["err"]
    assert len(ended["err"]) < 4000
    assert ended["seconds"] < SECONDS, ended["seconds"]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_none_is_named_by_verify_and_never_a_fault(
    tools: Callable[..., Any], finished: Path, tmp_path: Path, name: str
) -> None:
    root = copied(finished, tmp_path)
    for content in [*CONTENTS.values()][:: 4 if name in FREE else 1]:
        (root / name).write_bytes(content)
        ended = tools("verify", root)
        if name not in FREE:
            refused(ended, root / name)
        if name == "plan.json":
            refused(tools("status", root), root / name)
        else:
            assert tools("status", root)["code"] == 0


@pytest.mark.parametrize("name", ["plan.json", "run.json", "decisions.json"])
def test_a_run_whose_record_is_none_is_refused_untouched(
    tools: Callable[..., Any], planned: Path, tmp_path: Path, options: list[object], name: str
) -> None:
    root = copied(planned, tmp_path)
    for content in CONTENTS.values():
        (root / name).write_bytes(content)
        if name == "decisions.json" and content == CONTENTS["an unknown version"]:
            continue  # a table of decisions may hold kinds that this version does not know
        refused(tools("run", *options), root / name)
        assert (root / name).read_bytes() == content
        refused(tools("plan", *options), root / name)


@pytest.mark.parametrize("what", YAML)
def test_a_hostile_configuration_is_refused_wherever_it_stands(
    tools: Callable[..., Any], planned: Path, tmp_path: Path, options: list[object], what: str
) -> None:
    root = copied(planned, tmp_path)
    (root / "config.yaml").write_bytes(YAML[what])
    for command in (["status", root], ["verify", root], ["run", *options], ["plan", *options]):
        refused(tools(*command), root / "config.yaml")
    taken_up = tools("run", "--resume-from-checkpoint", root, "--out", tmp_path / "new", "--data", tmp_path)
    assert taken_up["code"] == 5 and "config" in taken_up["err"] and not (tmp_path / "new").exists()
    refused(tools("plan", "--config", root / "config.yaml", "--out", tmp_path / "new"), root / "config.yaml", code=2)
    assert not (tmp_path / "tampered").exists() and not Path("tampered").exists()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "pipe": a_pipe,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", [*NEEDED, "report.json", "submission.zip", "run.lock.fence", "progress.json"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_neither_waited_for_nor_followed(
    tools: Callable[..., Any], planned: Path, finished: Path, tmp_path: Path, options: list[object], place: str,
    name: str,
) -> None:  # fmt: skip
    root = copied(planned if name in NEEDED else finished, tmp_path)
    (root / name).unlink(missing_ok=True)
    PLACES[place](root / name)
    ended = tools("verify", root)
    if place != "folder" or name not in FREE:
        refused(ended, root / name)
    if name in NEEDED:
        refused(tools("run", *options), root / name)
    assert tools("status", root)["seconds"] < SECONDS
    exported = tools("checkpoint", "export", root, "--out", tmp_path / "out.zip")
    assert exported["code"] in (2, 5) and not (tmp_path / "out.zip").exists()


VALUES: list[Any] = [
    None, [], {}, "x", "", -1, 0, 1.5, 1e308, 2**63, -(2**63), 2**64 - 1, True, [None], {"a": {}}, "\0", "../../x",
    float("nan"), [[[]]],
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value: every key, and the ends of lists."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1}:
            yield from places(value[index], (*at, index))


def mutated(raw: bytes, dice: random.Random) -> bytes:
    """One value replaced by another kind, or removed."""
    whole = json.loads(raw)
    *path, last = dice.choice(list(places(whole)))
    node = whole
    for key in path:
        node = node[key]
    if dice.random() < 0.2:
        del node[last]
    else:
        node[last] = dice.choice(VALUES)
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("name", ["plan.json", "run.json", "decisions.json", "report.json", "ensemble.json"])
def test_no_value_of_another_kind_is_a_fault_of_the_program(
    tools: Callable[..., Any], finished: Path, tmp_path: Path, options: list[object], name: str
) -> None:
    dice = random.Random(name)
    for _ in range(8):
        root = copied(finished, tmp_path)
        changed = mutated((root / name).read_bytes(), dice)
        (root / name).write_bytes(changed)
        for command in (["verify", root], ["status", root], ["plan", *options], ["run", *options]):
            ended = tools(*command)
            assert ended["code"] in (0, 5), (changed, ended)


def test_no_changed_line_of_the_log_is_a_fault_of_the_program(
    tools: Callable[..., Any], planned: Path, tmp_path: Path, options: list[object]
) -> None:
    dice = random.Random(5)
    for _ in range(10):
        root = copied(planned, tmp_path)
        path = next((root / "events" / "driver").glob("*.jsonl*"))
        (root / "events" / "driver" / "00000000.seal.json").unlink(missing_ok=True)
        lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
        at = dice.randrange(len(lines))
        choice = dice.randrange(3)
        lines[at] = (
            json.dumps(json.loads(mutated(lines[at], dice))).encode()
            if choice
            else dice.choice(list(CONTENTS.values()))
        )
        path.unlink()
        path.with_name("00000000.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        assert tools("verify", root)["code"] == 5
        for command in (["status", root], ["events", root], ["events", root, "--event", "BOOT"]):
            assert tools(*command)["code"] in (0, 5)
        assert tools("plan", *options)["code"] in (0, 5)


def test_an_impossible_count_of_sessions_is_refused(
    tools: Callable[..., Any], planned: Path, tmp_path: Path, options: list[object]
) -> None:
    for fence in (10**8, 2**64 - 1):
        root = copied(planned, tmp_path)
        (root / "run.lock.fence").write_text(json.dumps({"fence": fence}))
        refused(tools("run", *options), root / "run.lock.fence")


def test_a_sound_run_passes_all_this(tools: Callable[..., Any], finished: Path, command: Callable[..., Ended]) -> None:
    assert tools("verify", finished)["code"] == 0
    assert tools("status", finished)["code"] == 0
    assert command("status", finished, "--json").json["state"] == "complete"
