#!/usr/bin/env python3
"""A small Slurm of one machine, found as sbatch, squeue, sacct, scancel and scontrol: it really runs the scripts.

Its jobs are JSON files in FAKE_SLURM. It knows what mmedpo uses: arrays, afterok, kill-on-invalid-dep, output, name,
requeue. With FAKE_SLURM_HIDES, a task sees that folder empty, as on another machine, and has a temporary folder of its
own. `install` puts it on the PATH; `reboot` is what Slurm does after its machines were killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PLACE = Path(os.environ.get("FAKE_SLURM", ""))
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL")
NAMES = ("sbatch", "squeue", "sacct", "scancel", "scontrol")


def install(place: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands find the programs, whose jobs lie in `place`."""
    place.mkdir()
    programs.mkdir()
    script = Path(__file__).read_text().replace("/usr/bin/env python3", sys.executable, 1)
    for name in (*NAMES, Path(__file__).name):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("FAKE_SLURM", str(place))


def change(job: str, **values: object) -> dict:
    """Change a job's file, or only read it."""
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = PLACE / f"{job}.json"
        found = json.loads(file.read_text())
        for name, value in values.items():
            if isinstance(value, dict):
                found[name].update(value)
            elif not (name == "state" and found[name] in ENDED):
                found[name] = value
        if values:
            write(file, found)
    return found


def write(file: Path, record: dict) -> None:
    """Write a job's file, whole or not at all."""
    working = file.with_suffix(".writing")
    working.write_text(json.dumps(record))
    working.replace(file)


def sbatch(words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    options |= dict(word.removeprefix("--").partition("=")[::2] for word in words[:-1])
    if options["partition"] not in ("cpu", "gpu"):
        sys.exit("sbatch: error: invalid partition specified")
    job = str(100 + len(list(PLACE.glob("*.json"))))
    last, most = re.fullmatch(r"0-(\d+)(?:%(\d+))?", options["array"]).groups()
    exported = dict(word.split("=") for word in options["export"].split(",") if "=" in word)
    record = {
        "job": job, "options": options, "script": script, "most": int(most or 99), "env": {**os.environ, **exported},
        "cwd": str(Path.cwd()), "states": {str(element): "PENDING" for element in range(int(last) + 1)}, "pids": {},
    }  # fmt: skip
    write(PLACE / f"{job}.json", record)
    attend(job)
    print(f"Submitted batch job {job}")


def attend(job: str) -> None:
    """Start what runs a job."""
    subprocess.Popen(
        [sys.executable, __file__, "run", job], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=(PLACE / "errors.log").open("a"), start_new_session=True,
    )  # fmt: skip


def reboot(words: list[str]) -> None:
    """Requeue the elements of killed machines, or give them up, if so asked; then go on with all jobs."""
    for record in records():
        job, states = record["job"], record["states"]
        running = [element for element, state in states.items() if state == "RUNNING"]
        assert not running or "requeue" in record["options"]
        change(job, states=dict.fromkeys(running, "NODE_FAIL" if words == ["lost"] else "PENDING"))
        if not {*states.values()} <= {*ENDED}:
            attend(job)


def run(words: list[str]) -> None:
    """Run the elements of an array after the jobs on which it depends, as Slurm's daemons do."""
    job = words[0]
    record = change(job)
    for other in re.findall(r"afterok:(\d+)", record["options"].get("dependency", "")):
        while not (states := set(change(other)["states"].values())) <= set(ENDED):
            time.sleep(0.05)
        if states != {"COMPLETED"}:  # kill-on-invalid-dep
            assert record["options"]["kill-on-invalid-dep"] == "yes"
            change(job, states=dict.fromkeys(record["states"], "CANCELLED"))
    script = PLACE / f"{job}.sh"
    script.write_text(record["script"])
    running: dict[str, subprocess.Popen] = {}
    waiting = list(record["states"])
    while waiting or running:
        record = change(job)
        waiting = [element for element in waiting if record["states"][element] == "PENDING"]
        while waiting and len(running) < record["most"]:
            element = waiting.pop(0)
            running[element] = start(record, script, element)
            change(job, states={element: "RUNNING"}, pids={element: running[element].pid})
        for element in [element for element, process in running.items() if process.poll() is not None]:
            code = running.pop(element).returncode
            if change(job)["states"][element] == "RUNNING":
                ended = {0: "COMPLETED", 128 + signal.SIGKILL: "OUT_OF_MEMORY"}.get(code, "FAILED")
                change(job, states={element: ended})
        time.sleep(0.05)


def start(record: dict, script: Path, element: str) -> subprocess.Popen:
    job = record["job"]
    output = record["options"]["output"].replace("%A", job).replace("%a", element)
    environment = record["env"] | {
        "SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": element, "SLURM_NODELIST": "node1",
    }  # fmt: skip
    words = ["bash", str(script)]
    if hidden := os.environ.get("FAKE_SLURM_HIDES"):
        environment["TMPDIR"] = tempfile.mkdtemp(dir=PLACE)
        words = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs tmpfs {hidden} && exec bash {script}"]
    with Path(output).open("wb") as log:
        return subprocess.Popen(
            words, cwd=record["cwd"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def records() -> list[dict]:
    return [change(file.stem) for file in sorted(PLACE.glob("*.json"))]


def squeue(words: list[str]) -> None:
    assert words == ["--me", "--noheader", "--array", "--format=%F|%K|%T|%j"]
    for record in records():
        for element, state in record["states"].items():
            if state not in ENDED:
                print(f"{record['job']}|{element}|{state}|{record['options']['job-name']}")


def sacct(words: list[str]) -> None:
    for record in records():
        if record["options"]["job-name"] == words[words.index("--name") + 1]:
            for element, state in record["states"].items():
                print(f"{record['job']}_{element}|{state}")


def scancel(words: list[str]) -> None:
    for job in words:
        record = change(job)
        left = [element for element, state in record["states"].items() if state not in ENDED]
        change(job, states=dict.fromkeys(left, "CANCELLED"))
        for element in left:
            if pid := record["pids"].get(element):
                os.killpg(pid, signal.SIGKILL)


def scontrol(words: list[str]) -> None:
    assert words[:2] == ["show", "hostnames"]
    print(words[2])


if __name__ == "__main__":
    name, *words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[:1] in (["run"], ["reboot"]):
        name, *words = words
    globals()[name](words)
