"""What is known of a `runc restore` that did not end well."""

import json
import sys
from pathlib import Path

from grit_runtime.host import process, runc_restore
from grit_runtime.host.runc_restore import Ended

# Has two children, as runc has CRIU and CRIU's first task: one is killed, the other would stay.
LEFT_WAITING = """
import os, signal, time
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
task = os.fork()
if task == 0:
    time.sleep(1000)
os.waitpid(task, 0)
os._exit(1)
"""


def test_a_runc_whose_criu_was_killed_does_not_wait_for_its_tasks_for_ever() -> None:
    argv = [sys.executable, "-c", LEFT_WAITING]
    ended = runc_restore.run(
        argv, token=process.new_token(), cgroups_path="", meanwhile=lambda: None
    )
    assert ended == Ended(1, 9)


def reason(tmp_path: Path, ended: Ended, *, error: str = "", criu_log: str = "") -> str:
    runc_log, log = tmp_path / "runc.log", tmp_path / "restore.log"
    runc_log.write_text(json.dumps({"level": "error", "msg": error}) + "\n" if error else "")
    log.write_text(criu_log)
    return runc_restore.reason(ended, str(log), str(runc_log))


def test_the_reason_is_who_was_killed_or_what_criu_says_or_what_runc_says(tmp_path: Path) -> None:
    warning = "(00.1) Warn  (criu/cr-restore.c:1): it might cause problems\n"
    failed = warning + "(00.2) Error (criu/files.c:7): no such file\n"
    assert reason(tmp_path, Ended(-9, 0), criu_log=warning) == "runc was killed by SIGKILL"
    for error in ("EOF", "connection reset by peer", "broken pipe"):
        cut_off = f"read unixpacket @->@: {error}"
        assert reason(tmp_path, Ended(1, 11), error=cut_off) == "CRIU was killed by SIGSEGV"
        assert reason(tmp_path, Ended(1, 0), error=cut_off, criu_log=failed).startswith(
            "CRIU was killed by a signal"
        )
    told = reason(tmp_path, Ended(1, 0), error="criu failed: type RESTORE", criu_log=failed)
    assert told == "criu/files.c:7: no such file"
    assert reason(tmp_path, Ended(1, 0), error="no such container") == "no such container"
    assert reason(tmp_path, Ended(1, 0)) == "exit 1"
