"""A control plane: etcd, API server, controllers and scheduler, on the router of a network.

It has process and mount namespaces of its own, and all its files on a tmpfs in them; so all of it
goes when its first process does, which ends with its standard input if nobody ends it. Nothing of
it is reached from the machine itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from grit_runtime.host import procfs
from integration.kubernetes import credentials
from integration.node.network import ROUTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO

    from integration.node.network import Network

SERVER = f"https://{ROUTER}:443"
HOME = Path("/mnt")  # in its mount namespace
ADMIN = HOME / "admin.kubeconfig"

# Pods find the API server here. That the address is the router's own stands in for kube-proxy.
SERVICE = "10.96.0.1"
SERVICE_RANGE = "10.96.0.0/16"

START_TIMEOUT_S = 120
ASK_AGAIN_S = 0.1
LOG_TAIL_BYTES = 24_576

AUDIT = HOME / "audit.log"  # a line of JSON for each request of a ServiceAccount of grit's

_ETCD = "http://127.0.0.1:2379"
_AUDITED = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:grit-system"]
- level: None
"""
_INIT = f"""\
read -r pid _ </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs {HOME}
ip link set lo up
ip addr add {SERVICE}/32 dev lo
echo "$pid"
exec cat >/dev/null
"""


class LostClusterError(Exception):
    """A part of the cluster ended, or never came to be: nothing is known about what was tested."""


class ControlPlane:
    """A control plane, from entering its context, which begins to start it, to leaving it."""

    def __init__(self, network: Network, programs: Path) -> None:
        self.network = network
        self.programs = programs
        self.authority = credentials.Authority()
        self._daemons: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start_init(stack)
            stack.callback(self._end)
            self._write_files()
            self._start(
                "etcd",
                f"--data-dir={HOME}/etcd",
                f"--listen-client-urls={_ETCD}",
                f"--advertise-client-urls={_ETCD}",
                "--logger=zap",
                "--log-level=warn",
            )
            self._start("kube-apiserver", *_api_server_flags())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def become_ready(self) -> None:
        """Wait for the API server, start what needs one, and wait until pods can be made."""
        self.wait_until("the API server is ready", "get", "--raw", "/readyz")
        self._start("kube-controller-manager", *_controller_flags())
        self._start("kube-scheduler", *_client_flags("kube-scheduler"))
        self.wait_until("there is a service account", "get", "serviceaccount", "default")

    def popen(
        self,
        argv: Sequence[object],
        *,
        kubeconfig: Path = ADMIN,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start *argv* beside the control plane, with this machine's files and *kubeconfig*."""
        return subprocess.Popen(
            [*self.enter_argv(kubeconfig), *map(str, argv)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            text=True,
        )

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """While the block runs, that program of the control plane does not get the processor."""
        with stopped(self._daemons[name]):
            yield

    def enter_argv(self, kubeconfig: Path = ADMIN) -> list[str]:
        """What runs the command after it beside the control plane."""
        enter = ["nsenter", f"--target={self._pid}", "--net", "--pid", "--mount", "--wd=."]
        return [*enter, "--", "env", f"KUBECONFIG={kubeconfig}"]

    def kubectl_argv(self) -> list[str]:
        """What runs kubectl, as the administrator, with the words after it."""
        return [*self.enter_argv(), str(self.programs / "kubectl")]

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig file of *user*, for programs beside the control plane."""
        return self.write(
            f"{user.replace(':', '-')}.kubeconfig", self.kubeconfig_text(user, groups)
        )

    def kubeconfig_text(self, user: str, groups: Sequence[str]) -> str:
        """A kubeconfig file's text, for wherever *user* may be."""
        entry = credentials.by_certificate(self.authority.client(user, groups))
        return credentials.kubeconfig(SERVER, self.authority.certificate, entry)

    def write(self, name: str, text: str) -> Path:
        """Keep *text* for as long as the control plane lives; where its neighbours find it."""
        self.path(HOME / name).write_text(text)
        return HOME / name

    def path(self, path: Path) -> Path:
        """Where this machine finds what is *path* to the programs beside the control plane."""
        return Path(f"/proc/{self._pid}/root") / path.relative_to("/")

    def wait_until(self, what: str, *words: str) -> None:
        """Ask kubectl the *words* until it answers with 0, which says that *what*."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(
            [*self.kubectl_argv(), *words], capture_output=True, check=False
        ).returncode:
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"waited {START_TIMEOUT_S} s"
                raise LostClusterError(f"{why} before {what}:\n{self.collect_logs()}")
            time.sleep(ASK_AGAIN_S)

    def collect_logs(self) -> str:
        """The ends of the logs of its parts, with a headline for each."""
        parts = ["==== control plane ===="]
        for path in sorted(self.path(HOME).glob("*.log")):
            parts += [f"---- {path.name}", path.read_text(errors="replace")[-LOG_TAIL_BYTES:]]
        return "\n".join(parts)

    def _start_init(self, stack: ExitStack) -> None:
        enter = ["nsenter", f"--net={self.network.namespace}", "--"]
        isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
        init = subprocess.Popen(
            [*enter, *isolate, "sh", "-euc", _INIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        stack.enter_context(init)  # which closes its standard input and waits
        assert init.stdout
        self._pid = int(init.stdout.readline())

    def _start(self, name: str, *flags: str) -> None:
        with self.path(HOME / f"{name}.log").open("w") as log:
            self._daemons[name] = self.popen([self.programs / name, *flags], stdout=log, stderr=log)

    def _end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)  # and with it all that is in its namespace
        for daemon in self._daemons.values():
            daemon.wait()

    def _write_files(self) -> None:
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        pairs = {
            "apiserver": self.authority.server(names, (ROUTER, SERVICE, "127.0.0.1")),
            "apiserver-kubelet": self.authority.client(
                "kube-apiserver", (credentials.ADMINISTRATORS,)
            ),
        }
        for name, pair in pairs.items():
            self.write(f"{name}.crt", pair.certificate)
            self.write(f"{name}.key", pair.key)
        accounts = credentials.new_key()
        self.write("ca.crt", self.authority.certificate)
        self.write("audited.yaml", _AUDITED)
        self.write("accounts.key", credentials.private_pem(accounts))
        self.write("accounts.pub", credentials.public_pem(accounts))
        self.kubeconfig("admin", (credentials.ADMINISTRATORS,))
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.kubeconfig(f"system:{name}")


@contextmanager
def stopped(entered: subprocess.Popen[str]) -> Iterator[None]:
    """While the block runs, what was started beside a control plane does not get the processor."""
    (program,) = procfs.children(entered.pid)
    os.kill(program, signal.SIGSTOP)
    os.waitid(os.P_PID, entered.pid, os.WSTOPPED)  # nsenter stops with its child
    try:
        yield
    finally:
        entered.send_signal(signal.SIGCONT)  # and has it go on


def _api_server_flags() -> list[str]:
    return [
        f"--etcd-servers={_ETCD}",
        f"--advertise-address={ROUTER}",
        "--secure-port=443",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--client-ca-file={HOME}/ca.crt",
        f"--tls-cert-file={HOME}/apiserver.crt",
        f"--tls-private-key-file={HOME}/apiserver.key",
        f"--kubelet-client-certificate={HOME}/apiserver-kubelet.crt",
        f"--kubelet-client-key={HOME}/apiserver-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={HOME}/accounts.pub",
        f"--service-account-signing-key-file={HOME}/accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--audit-policy-file={HOME}/audited.yaml",
        f"--audit-log-path={AUDIT}",
        # Webhooks are called at their service's endpoints, as there is no kube-proxy.
        "--enable-aggregator-routing=true",
    ]


def _controller_flags() -> list[str]:
    return [
        *_client_flags("kube-controller-manager"),
        f"--service-account-private-key-file={HOME}/accounts.key",
        f"--root-ca-file={HOME}/ca.crt",
        "--use-service-account-credentials=true",
    ]


def _client_flags(name: str) -> list[str]:
    return [
        f"--kubeconfig={HOME}/system-{name}.kubeconfig",
        "--bind-address=127.0.0.1",
        "--port=0",
        "--leader-elect=false",
    ]
