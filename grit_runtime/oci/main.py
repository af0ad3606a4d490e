"""grit-runtime: the OCI runtime that containerd calls.

The launcher (installation/files/grit-runtime) decides which calls grit may have to answer. It
passes all others to runc in a millisecond, without starting Python. This module gets the calls for
which it starts Python.
"""

from grit_runtime.oci.command_line import command_index, exec_runc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_OURS = ("create", "start", "delete", "kill", "checkpoint", "restore")


def main(argv: list[str], runc: str) -> "NoReturn":
    """Run *argv* as runc would; *runc* is the real program's absolute path."""
    at = command_index(argv)
    if at < len(argv) and argv[at] in _OURS:
        from grit_runtime.oci.intercept import intercept  # the rest is runc's

        intercept(argv, at, runc)
    exec_runc(runc, argv)
