"""A node without grit, but for its package: what `grit install` is run on."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from integration.node import rootfs
from integration.node.cri import Cri
from integration.node.node import START_TIMEOUT_S, Node, write_script

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.network import Network
    from integration.node.rootfs import Edition

GRIT = f"/{rootfs.VENV}/bin/grit"

# What pip makes of pyproject's entry for the command.
COMMAND = f"""\
#!/{rootfs.VENV}/bin/python
import sys

from grit_runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""

# Stands in for systemd's, which cannot run on these nodes: all it can do is note what it was asked
# for, and restart containerd in a cgroup of that name, where systemd would have it.
SYSTEMCTL = """\
#!/bin/sh
echo "$@" >>/var/log/systemctl.log
[ "$1 $2" = "restart containerd.service" ] || exit 0
for pid in $(pidof containerd); do
    kill "$pid"
    while [ -e "/proc/$pid" ]; do :; done
done
for system in /sys/fs/cgroup/memory/system /sys/fs/cgroup/system; do
    [ ! -d "$system" ] || cgroup=$system/containerd.service
done
mkdir -p "$cgroup"
(
    echo 0 >"$cgroup/cgroup.procs"
    exec </dev/null >>/var/log/containerd.log 2>&1
    exec setsid containerd $(cat /run/containerd-arguments)
) &
"""

# All that is on the node's own disk, with what tells whether it is as it was.
LIST = """\
find / -xdev \\( -name __pycache__ -o -path /var/lib/cni \\) -prune \
    -o ! -type d -printf '%p %y %m %U %G %l %s %T@\\n' -o -printf '%p %y %m %U %G\\n'
find /etc /usr/local /mnt /opt/grit/bin -xdev -type f -exec sha256sum {} +
find /var/lib/grit /mnt -printf '%p %y %m\\n'
"""


class BareNode(Node):
    """A node whose containerd knows of no handler of grit's."""

    def __init__(self, edition: Edition, *, name: str, network: Network) -> None:
        super().__init__(edition, name=name, network=network)
        self.handlers = {}

    def _install_project(self) -> None:
        site_packages = rootfs.site_packages(self.edition)
        ignored = shutil.ignore_patterns("__pycache__")
        package = self.root / site_packages / "grit_runtime"
        shutil.copytree(rootfs.REPO / "grit_runtime", package, ignore=ignored)
        write_script(self.path(Path(GRIT)), COMMAND)
        write_script(self.root / "usr/local/sbin/systemctl", SYSTEMCTL)
        (self.root / "run/systemd/system").mkdir(parents=True)
        (self.root / "run/containerd-arguments").touch()
        self.run([f"/{rootfs.VENV}/bin/python", "-m", "compileall", "-q", f"/{site_packages}"])

    def replace_package(self, version: str) -> None:
        """Put a package of that *version* in the place of the one there is.

        It differs in that number alone, so that the node's disk can be as it was.
        """
        package = rootfs.site_packages(self.edition) / "grit_runtime"
        path = self.root / package / "version.py"
        times = path.stat()
        path.write_text(re.sub(r'VERSION = ".*"', f'VERSION = "{version}"', path.read_text()))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        # By its time alone Python would take it for the one that it has compiled.
        compiling = ["-m", "compileall", "-q", "-f", f"/{package}/version.py"]
        self.run([f"/{rootfs.VENV}/bin/python", *compiling])

    def disk(self) -> set[str]:
        """Every file of the node, but for what its programs write while they run."""
        return set(self.run(["sh", "-c", LIST]).stdout.splitlines())

    def restart_by_hand(self) -> None:
        """Restart containerd where nothing stands in for systemd."""
        self.run(["sh", "-c", "kill $(pidof containerd); while pidof containerd; do :; done"])
        self._containerd.wait(60)
        self.start_containerd()
        self._connect_anew()

    def restart_containerd(self, *arguments: str) -> None:
        """Have the stand-in for systemd start containerd, as the unit that it then is."""
        (self.root / "run/containerd-arguments").write_text(" ".join(arguments))
        self.run(["systemctl", "restart", "containerd.service"])
        self._connect_anew()

    def _connect_anew(self) -> None:
        """Wait for the containerd that was started."""
        self.cri.close()
        self.cri = Cri(self.root / "run/containerd/containerd.sock")
        if not self.cri.becomes_ready(None, set(), START_TIMEOUT_S):
            raise AssertionError("containerd was started and does not answer")
