"""Running a container's whole life in the zygote, with a plain process instead of a container.

What Python and protobuf allocate when code first runs is then in memory that all shims share;
otherwise each shim would allocate its own, about a megabyte.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from grit_runtime import paths
from grit_runtime.host import linux
from grit_runtime.host.process import new_token
from grit_runtime.model import cri
from grit_runtime.proto import event_forwarding_pb2, runc_options_pb2, task_pb2
from grit_runtime.shim import events
from grit_runtime.shim.children import Children
from grit_runtime.shim.events import Publisher
from grit_runtime.shim.runtime import Shim
from grit_runtime.shim.task import SERVICES, Task
from grit_runtime.shim.transport import Method, Server, connect
from grit_runtime.wire.well_known import pack

M = TypeVar("M", bound=Message)

STAGE_DIR = f"{paths.RUN_DIR}/rehearsal"  # of the only zygote that there is
TIMEOUT_S = 10

# Leaves a process behind where runc would leave a container or one more process in it.
RUNTIME = """#!/bin/sh
made=
for word in "$@"; do
    case $word in create | exec) made=1 ;; esac
    [ "$option" != --pid-file ] || path=$word
    option=$word
done
[ -z "$made" ] || { sleep 60 & echo $! >"$path"; }
"""

# As long as what CRI writes for a small container.
SPEC = {
    "process": {"env": [f"VARIABLE_{number}=value" for number in range(20)]},
    "mounts": [
        {"destination": f"/volume/{number}", "type": "bind", "options": ["rbind", "rprivate", "rw"]}
        for number in range(20)
    ],
    "annotations": {f"{cri.PREFIX}{number}": "value" for number in range(10)},
    "linux": {"namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/kcore"] * 20},
}


def run() -> None:
    """Run the life a few times, because Python compiles code again that runs often."""
    for _ in range(3):
        os.makedirs(f"{STAGE_DIR}/rootfs", mode=0o700)
        try:
            asyncio.run(_serve(STAGE_DIR))
        finally:
            shutil.rmtree(STAGE_DIR)
    while len(os.listdir("/proc/self/task")) > 1:  # a fork would copy what it has just locked
        time.sleep(0.001)
    linux.adopt_orphans(wanted=False)


async def _serve(directory: str) -> None:
    with open(f"{directory}/config.json", "w", encoding="utf-8") as file:
        json.dump(SPEC, file)
    with open(f"{directory}/runtime", "w", encoding="utf-8") as file:
        file.write(RUNTIME)
        os.fchmod(file.fileno(), 0o700)
    os.mkfifo(f"{directory}/out")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/socket")
    listener.listen()
    publisher = Publisher(f"{directory}/socket", "rehearsal")
    task = Task(Shim("rehearsal", Children(new_token()), publisher.publish), lambda: None)
    forward = Method(event_forwarding_pb2.ForwardRequest, _accept)
    server = Server({**task.methods, (events.SERVICE, "Forward"): forward})
    await server.listen(listener)
    await _live(task, directory)
    await publisher.flush(TIMEOUT_S)
    await server.close()


async def _accept(_event: event_forwarding_pb2.ForwardRequest) -> Empty:
    return Empty()


async def _live(task: Task, directory: str) -> None:
    client = await connect(f"{directory}/socket")
    out = f"{directory}/out"

    async def ask(method: str, reply: type[M], **fields: object) -> M:
        name = (SERVICES[0], method)
        request = task.methods[name].request(id="container", **fields)
        return await client.call(*name, request, reply, timeout_s=TIMEOUT_S, metadata={})

    async def end(exec_id: str) -> None:
        state = await ask("State", task_pb2.StateResponse, exec_id=exec_id)
        waiting = asyncio.create_task(ask("Wait", task_pb2.WaitResponse, exec_id=exec_id))
        os.kill(state.pid, signal.SIGKILL)
        await waiting
        await ask("Delete", Empty, exec_id=exec_id)

    options = pack(runc_options_pb2.Options(binary_name=f"{directory}/runtime"))
    await ask("Create", Empty, bundle=directory, stdout=out, stderr=out, options=options)
    await ask("Start", Empty)
    await ask("Exec", Empty, exec_id="exec", stdout=out, spec=Any(value=b"{}"))
    await ask("Start", Empty, exec_id="exec")
    await ask("Connect", Empty)
    await ask("Pids", Empty)
    await end("exec")
    await end("")
