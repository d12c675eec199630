"""What is secret stays so: a local Ray is ours alone, and no secret of the environment gets into any file or output."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import secrets
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import start, write_config

#: Where users keep secrets that a run has no use for.
NAMES = (
    "KAGGLE_KEY", "KAGGLE_USERNAME", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN",
    "RAY_AUTH_TOKEN", "WANDB_API_KEY", "SSH_AUTH_SOCK", "PGPASSWORD", "MY_OWN_SECRET",
)  # fmt: skip

#: What a process is asked without a token, by what it is; the first can be asked with it too and harms nothing.
CALLS = {
    "gcs": (
        "NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys",
        "InternalKVGcsService/InternalKVPut", "NodeInfoGcsService/GetClusterId",
        "JobInfoGcsService/AddJob", "ActorInfoGcsService/RegisterActor", "NodeInfoGcsService/RegisterNode",
        "ControlPlanePubSubGcsService/GcsPublish", "ActorInfoGcsService/KillActorViaGcs",
    ),
    "raylet": (
        "NodeManagerService/GetNodeStats", "NodeManagerService/RequestWorkerLease",
        "NodeManagerService/CancelWorkerLease", "NodeManagerService/DrainRaylet",
    ),
    "objects": ("ObjectManagerService/Pull", "ObjectManagerService/Push"),
    "worker": (
        "CoreWorkerService/NumPendingTasks", "CoreWorkerService/GetCoreWorkerStats", "CoreWorkerService/PushTask",
        "CoreWorkerService/KillActor", "CoreWorkerService/CancelTask", "CoreWorkerService/Exit",
    ),
}  # fmt: skip

#: A Ray of ours with one actor. Says what it found, asks every port, and lets others try.
CHILD = """
import json, os, socket, stat, struct, subprocess, sys, urllib.error, urllib.request
from pathlib import Path
import psutil
from search.cluster import _short_tmp, prepare_environment, ray_session
prepare_environment(None)
token, calls = os.environ["RAY_AUTH_TOKEN"], json.loads(sys.argv[1])

def text(raw):
    return (bytes([len(raw)]) if len(raw) < 127 else bytes([127, len(raw) - 127])) + raw

def frame(kind, flags, stream, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body

def ask(address, call, token):
    # One empty gRPC request by hand, HTTP/2 without compression of headers; returns the status in the answer.
    headers = [(":method", "POST"), (":scheme", "http"), (":path", f"/ray.rpc.{call}"), (":authority", "ray"),
               ("te", "trailers"), ("content-type", "application/grpc")]
    headers += [("authorization", f"Bearer {token}")] if token else []
    head = b"".join(b"\\0" + text(name.encode()) + text(value.encode()) for name, value in headers)
    with socket.create_connection(address, 20) as line:
        line.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0) + frame(1, 4, 1, head)
                     + frame(0, 1, 1, bytes(5)))
        left, answer = b"", b""
        while True:
            left += (part := line.recv(1 << 16))
            while len(left) >= 9 and len(left) >= 9 + int.from_bytes(left[:3], "big"):
                size, kind, flags = int.from_bytes(left[:3], "big"), left[3], left[4]
                stream, body, left = int.from_bytes(left[5:9], "big"), left[9 : 9 + size], left[9 + size :]
                if kind == 4 and not flags & 1:
                    line.sendall(frame(4, 1, 0))
                answer += body if stream == 1 else b""
                if stream == 1 and (flags & 1 or kind == 3):
                    part = b""
            if not part:
                _, _, status = answer.rpartition(b"grpc-status")
                return int(status[1 : 1 + status[0]])

def http(address, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request("http://%s:%d/get_or_create_runtime_env" % address, b"", headers, method="POST")
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code

def visit(process, address, name):
    if "Agent" in name:
        return {"how": "http", "told": {"": [http(address, one) for one in (None, "x" * 64, token)]}}
    told = {}
    for role, names in calls.items():
        for number, call in enumerate(names):
            told[call] = [ask(address, call, one) for one in (None, "x" * 64)]
            if number == 0:
                told[call].append(ask(address, call, token))
    return {"how": "grpc", "told": told}

with ray_session(None, ()):
    import ray

    @ray.remote
    class Actor:
        def pid(self):
            return os.getpid()

    actor = Actor.remote()
    ray.get(actor.pid.remote())
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    (home,) = Path(_short_tmp()).glob(f"nx{os.getpid()}-*")
    here = ray.get_runtime_context().gcs_address
    wrong = [
        subprocess.Popen(
            [sys.executable, "-c", f"import ray; ray.init({here!r}, log_to_driver=False)"],
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | given,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for given in ({}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 64})
    ]
    ports, commands = [], []
    for process in family:
        name = process.name()
        commands.append(" ".join(process.cmdline()))
        for one in process.net_connections(kind="inet"):
            if one.status == psutil.CONN_LISTEN:
                ip = one.laddr.ip.removeprefix("::ffff:")
                ports.append({"process": name, "ip": ip, **visit(process, (ip, one.laddr.port), name)})
            elif one.type == socket.SOCK_DGRAM:
                ports.append({"process": name, "ip": one.laddr.ip, "how": "udp", "told": {}})
    files = [path for path in home.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    holding = [str(path) for path in files if token.encode() in path.read_bytes()]
    refused = [(process.communicate()[1][-500:], process.returncode) for process in wrong]
    assert ray.get(actor.pid.remote()) > 0
    print(json.dumps({
        "token": token, "ports": ports, "processes": [process.name() for process in family], "files": len(files),
        "in_commands": sum(token in command for command in commands), "in_files": holding, "refused": refused,
        "home_mode": stat.S_IMODE(home.stat().st_mode), "home": str(home),
        "sockets": [str(path) for path in home.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)],
        "user_token": (Path.home() / ".ray").exists(), "umask": os.umask(0),
    }))
"""


@pytest.fixture(scope="module")
def canaries() -> dict[str, str]:
    return {name: f"CANARY-{secrets.token_hex(12)}" for name in (*NAMES, "kaggle.json", "ray file")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, canaries: dict[str, str]) -> dict[str, str]:
    """An environment full of secrets, and a home with some more; of a shell that had Ray's tokens switched off."""
    home = tmp_path_factory.mktemp("home")
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "me", "key": canaries["kaggle.json"]}))
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(canaries["ray file"])
    return {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "disabled", **{name: canaries[name] for name in NAMES}}


@pytest.fixture(scope="module")
def ray_of_ours(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("empty-home")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(CALLS)], capture_output=True, text=True, timeout=280, check=False,
        env={**environment, "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["token"] not in done.stderr
    return found


def test_every_port_of_a_local_ray_is_on_the_loopback_interface_only(ray_of_ours: dict[str, Any]) -> None:
    assert {"gcs_server", "raylet", "ray::Actor"} <= set(ray_of_ours["processes"])
    assert len(ray_of_ours["ports"]) >= 6
    assert {port["ip"] for port in ray_of_ours["ports"]} == {"127.0.0.1"}
    assert {port["how"] for port in ray_of_ours["ports"]} == {"grpc", "http"}


def test_every_port_of_a_local_ray_is_behind_the_token(ray_of_ours: dict[str, Any]) -> None:
    """12: no such call at this port; 16: no valid token; 0: done. Every port answers one of ours with the token."""
    roles = set()
    for port in ray_of_ours["ports"]:
        told = port["told"]
        if port["how"] == "http":
            assert told[""] == [401, 403, 200], port
            continue
        assert all(status in (12, 16) for statuses in told.values() for status in statuses[:2]), port
        (role,) = [role for role, calls in CALLS.items() if all(told[call][:2] == [16, 16] for call in calls)]
        assert told[CALLS[role][0]] == [16, 16, 0], port
        roles.add(role)
    assert roles == set(CALLS)


def test_who_has_no_token_or_another_one_cannot_connect(ray_of_ours: dict[str, Any]) -> None:
    assert len(ray_of_ours["refused"]) == 3
    for said, code in ray_of_ours["refused"]:
        assert code != 0 and "ailed to connect" in said


def test_the_token_is_random_and_in_no_file_and_no_command_line(
    ray_of_ours: dict[str, Any], canaries: dict[str, str]
) -> None:
    assert len(ray_of_ours["token"]) == 64 and ray_of_ours["token"] not in canaries.values()
    assert ray_of_ours["files"] > 5
    assert ray_of_ours["in_files"] == [] and ray_of_ours["in_commands"] == 0
    assert ray_of_ours["user_token"] is False


def test_rays_folder_with_its_sockets_is_private_and_gone_at_the_end(ray_of_ours: dict[str, Any]) -> None:
    assert ray_of_ours["home_mode"] == 0o700 and len(ray_of_ours["sockets"]) >= 2
    assert not Path(ray_of_ours["home"]).exists()


# What a whole run leaves behind.


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, raw and, where it is packed, unpacked."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield from unfolded(str(file), file.read_bytes())


def unfolded(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, raw
    if raw.startswith(b"\x1f\x8b"):
        yield f"{name}, unpacked", gzip.decompress(raw)
    elif raw.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for member in archive.namelist():
                yield from unfolded(f"{name}, {member}", archive.read(member))


def leaks(canaries: dict[str, str], *sources: Iterator[tuple[str, bytes]]) -> list[tuple[str, str]]:
    return [
        (where, name)
        for source in sources
        for where, raw in source
        for name, value in canaries.items()
        if value.encode() in raw or value[::-1].encode() in raw
    ]


def run_and_search(
    environment: dict[str, str], canaries: dict[str, str], root: Path, config: Path, data: Path, code: int
) -> str:
    """Run it, pack it, and look for the canaries and Ray's token everywhere; returns what it said."""
    process = start("run", "--config", config, "--data", data, "--out", root, env=environment)
    tokens = watched(process)
    said = process.communicate()
    assert process.returncode == code, said[1]
    assert len(tokens) == ("executor: ray" in config.read_text()) and not tokens & set(canaries.values())
    packed = start("checkpoint", "export", root, "--out", root.with_suffix(".zip"), env=environment)
    told = packed.communicate(timeout=60)
    assert packed.returncode == 0, told[1]
    outputs = [(name, text.encode()) for name, text in zip(("out", "err", "out", "err"), (*said, *told), strict=True)]
    looked_for = canaries | dict(zip(["the token of Ray"], tokens, strict=False))
    assert leaks(looked_for, iter(outputs), contents(root.parent)) == []
    return said[1]


def watched(process: subprocess.Popen[str]) -> set[str]:
    """Waits for the end of a run; the tokens that its children were given."""
    tokens: set[str] = set()
    family = psutil.Process(process.pid)
    until = time.monotonic() + 240
    try:
        while process.poll() is None and time.monotonic() < until:
            for one in family.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    tokens |= {one.environ().get("RAY_AUTH_TOKEN", "")} if "ray" in one.exe() else set()
            time.sleep(0.2)
    except psutil.NoSuchProcess:
        pass
    if process.poll() is None:
        for one in [*family.children(recursive=True), family]:
            one.kill()
        pytest.fail("the run did not end")
    return tokens - {""}


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_no_secret_gets_into_a_run_its_log_its_archive_or_its_output(
    environment: dict[str, str], canaries: dict[str, str], tmp_path: Path, tiny_data: Path, executor: str
) -> None:
    config = write_config(tmp_path / "tiny.yaml", flat={
        "resources.executor": executor, "resources.trials_in_flight": 2, "grid.meta_neurons": 1,
    })  # fmt: skip
    root = tmp_path / "runs" / "run"
    run_and_search(environment, canaries, root, config, tiny_data, 0)
    names = {path.name for path in root.rglob("*")}
    assert {"run_seal.json", "submission.zip", "report.md"} <= names
    assert (executor == "ray") == any(name.startswith("events.out.tfevents") for name in names)


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_no_secret_gets_into_the_report_of_a_failure(
    environment: dict[str, str], canaries: dict[str, str], tmp_path: Path, tiny_data: Path, executor: str
) -> None:
    """A fault of the program itself, with its traceback: put into every process of the run as it starts."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAULT)
    config = write_config(tmp_path / "tiny.yaml", flat={
        "resources.executor": executor, "resources.trials_in_flight": 1, "grid.meta_neurons": 1, "grid.l1": [0.01],
    })  # fmt: skip
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])])
    root = tmp_path / "runs" / "run"
    said = run_and_search({**environment, "PYTHONPATH": paths}, canaries, root, config, tiny_data, 1)
    assert "put here" in said
    if executor == "inline":
        assert "Traceback" in said
    else:
        reports = [path.read_text() for path in root.rglob("error.txt")]
        assert reports and all("Failure" in report and "put here" in report for report in reports)


FAULT = """
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in ("trainables.task", "search.tune_runner"):
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def with_fault(module):
            execute(module)
            if name == "trainables.task":
                module.CandidateTask.advance = fail
            else:
                module.RETRIES = 0  # once is enough

        spec.loader.exec_module = with_fault
        return spec

def fail(self, engine):
    raise RuntimeError("a fault that was put here")

sys.meta_path.insert(0, Finder())
"""


def test_the_search_for_secrets_finds_one(canaries: dict[str, str], tmp_path: Path) -> None:
    """In a packed segment, in a zip within a zip, and in the open."""
    value = canaries["KAGGLE_KEY"].encode()
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 99 + value))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b", value)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", inner.getvalue())
    (tmp_path / "d").write_bytes(value[::-1])
    found = {Path(where.partition(",")[0]).name for where, _ in leaks(canaries, contents(tmp_path))}
    assert found == {"a.gz", "c.zip", "d"}
