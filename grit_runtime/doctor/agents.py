"""This node's agent, its certificate, and the agents of other nodes."""

from __future__ import annotations

import datetime
import os

from grit_runtime import certificates, errors
from grit_runtime.agent import client, identity, peers, service
from grit_runtime.doctor.finding import BROKEN, WARNING, Finding, absent, broken, ok, warning
from grit_runtime.errors import FailedPreconditionError, GritError, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.doctor.node import Node

_CALL_TIMEOUT_S = 1.5  # a person waits for all findings
_SOON = datetime.timedelta(days=30)
_ANEW = (
    f"remove {identity.CERTIFICATE} and {identity.KEY} and make them anew with grit agent init "
    "(docs/agent.md)"
)
_CA_ANEW = f"copy {identity.CA} from another node, or from where it was made (docs/agent.md)"


def certificate(node: Node) -> Finding:
    """That other nodes know this one by, and the CA's."""
    directory = node.config.agent_dir
    if not os.path.exists(f"{directory}/{identity.CERTIFICATE}"):
        return absent(
            f"{directory} has no {identity.CERTIFICATE}: no other node reads from this one"
        )
    read = {}
    for name in (identity.CERTIFICATE, identity.CA):
        try:
            with open(f"{directory}/{name}", "rb") as file:
                read[name] = certificates.loaded(file.read())
        except ValueError:  # cryptography's own text is a page about PEM
            return broken(
                f"{directory}/{name} is no certificate: expected one in PEM, whole",
                _ANEW if name == identity.CERTIFICATE else _CA_ANEW,
                errors.ConfigurationError.reason,
            )
    own = read[identity.CERTIFICATE][0]
    issuer = certificates.issuer(own, read[identity.CA])
    if issuer is None:
        return broken(
            f"{directory}/{identity.CERTIFICATE} is signed by no CA of {identity.CA} beside it: no "
            "other node accepts it",
            f"{_ANEW}, with the CA that the other nodes have",
            errors.PeerError.reason,
        )
    of = {identity.CERTIFICATE: own, identity.CA: issuer}
    found = [_out_of_time(f"{directory}/{name}", one) for name, one in of.items()]
    for worst in (BROKEN, WARNING):
        for one in found:
            if one and one.verdict == worst:
                return one
    identity.Identity(directory)
    told = [f"{name} until {one.not_valid_after_utc:%Y-%m-%d}" for name, one in of.items()]
    return ok(f"{directory}: valid {', '.join(told)}")


def _out_of_time(path: str, certificate: Any) -> Finding | None:
    """What is wrong with the times of a certificate, if anything is."""
    now = datetime.datetime.now(datetime.UTC)
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if since > now:
        return broken(
            f"{path} is not valid before {since:%Y-%m-%d %H:%M} UTC",
            f"set the clock of this node, or {_ANEW}",
            errors.PeerError.reason,
        )
    if until < now:
        return broken(f"{path} has expired on {until:%Y-%m-%d}", _ANEW, errors.PeerError.reason)
    if until < now + _SOON:
        return warning(
            f"{path} expires on {until:%Y-%m-%d}",
            "make it anew with grit agent init before that (docs/agent.md)",
        )
    return None


def agent(node: Node) -> Finding:
    """Whether it answers on its socket; one is expected where it has a certificate."""
    try:
        jobs = client.status(timeout_s=_CALL_TIMEOUT_S)
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
