"""The agent of a node of this machine, in the mounts and on the network that the caller is in."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from grit_runtime.agent import client, identity, service
from grit_runtime.files import arrivals
from grit_runtime.proto import agent_pb2
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.gpu.machine import Machine

DIRECTORY = Path(identity.DIR)
CONFIG = Path("/etc/grit/config.toml")
LOG = Path("/var/log/grit-agent.log")
READY_TIMEOUT_S = 30


@contextmanager
def running(machine: Machine, name: str, ca_dir: Path | None = None) -> Iterator[None]:
    """While the block runs, the node has an agent, of the CA in *ca_dir* or of one of its own."""
    CONFIG.write_text("agent_metrics = 0\n")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if ca_dir:
        for file in (identity.CA, identity.CA_KEY):
            shutil.copy(ca_dir / file, DIRECTORY)
    machine.run(["grit", "agent", "init", "--node", name])
    with (
        LOG.open("w") as log,
        machine.popen(["grit", "agent", "run"], stdout=log, stderr=log) as agent,
    ):
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not Path(service.SOCKET).exists():
            assert agent.poll() is None, LOG.read_text()
            assert time.monotonic() < deadline, LOG.read_text()
            time.sleep(0.05)
        try:
            yield
        finally:
            agent.send_signal(signal.SIGTERM)


def prepare(namespace: str, name: str, peer: str, host: str) -> str:
    """Have the agent bring a checkpoint of a peer: the job, once it is announced."""
    request = agent_pb2.PrepareRequest(
        namespace=namespace, name=name, source=f"peer://{peer}", host=host
    )
    job = client.asked("Prepare", request, agent_pb2.Job)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while arrivals.of(str(checkpoints.ROOT), namespace, name) is None:
        assert time.monotonic() < deadline, LOG.read_text()
        time.sleep(0.01)
    return job.id


def brought(job_id: str) -> dict[str, float]:
    """What the job has taken, once it has ended: its seconds, from its beginning."""
    begun = time.monotonic()
    *_, last = client.followed(job_id)
    assert last.state == "done", f"{last.reason}: {last.text}"
    return {"durable after": time.monotonic() - begun}
