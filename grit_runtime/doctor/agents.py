"""This node's agent, its certificate, and the agents of other nodes."""

from __future__ import annotations

import datetime
import os

from grit_runtime import certificates, errors
from grit_runtime.agent import client, identity, peers, service
from grit_runtime.doctor.finding import Finding, absent, broken, ok, warning
from grit_runtime.errors import FailedPreconditionError, GritError, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node

_SOON = datetime.timedelta(days=30)


def certificate(node: Node) -> Finding:
    """That other nodes know this one by, and the CA's."""
    directory = node.config.agent_dir
    if not os.path.exists(f"{directory}/{identity.CERTIFICATE}"):
        return absent(
            f"{directory} has no {identity.CERTIFICATE}: no other node reads from this one"
        )
    now = datetime.datetime.now(datetime.UTC)
    told = []
    for name in (identity.CERTIFICATE, identity.CA):
        with open(f"{directory}/{name}", "rb") as file:
            until = datetime.datetime.fromisoformat(certificates.valid_until(file.read()))
        told.append(f"{name} until {until:%Y-%m-%d}")
        if until < now:
            return broken(
                f"{directory}/{name} has expired on {until:%Y-%m-%d}",
                f"remove {identity.CERTIFICATE} and {identity.KEY} and make them anew with grit "
                "agent init (docs/agent.md)",
                errors.PeerError.reason,
            )
        if until < now + _SOON:
            return warning(
                f"{directory}/{name} expires on {until:%Y-%m-%d}",
                "make it anew with grit agent init before that (docs/agent.md)",
            )
    identity.Identity(directory)
    return ok(f"{directory}: valid {', '.join(told)}")


def agent(node: Node) -> Finding:
    """Whether it answers on its socket; one is expected where it has a certificate."""
    try:
        jobs = client.status()
    except GritError as error:
        expected = os.path.exists(f"{node.config.agent_dir}/{identity.CERTIFICATE}")
        if not (expected or os.path.exists(service.SOCKET)):
            return absent("no agent runs here, and none is set up")
        return broken(
            one_line(error), "systemctl start grit-agent.service", errors.UnavailableError.reason
        )
    running = sum(not job.ended for job in jobs)
    return ok(f"the agent answers at {service.SOCKET}; {running} jobs have not ended")


def reached_peers(node: Node) -> Finding:
    """Those that the caller has named, each asked what it has."""
    if not node.peers:
        return absent("none is named; --peer peer://NODE tries one")
    try:
        own = peers.own(node.config)
    except FailedPreconditionError as error:
        return absent(one_line(error))
    told = []
    for url in node.peers:
        peer = peers.address(url)
        told.append(f"{peer.url} has {len(peers.listing(peer, own))} checkpoints")
    return ok(", ".join(told))
