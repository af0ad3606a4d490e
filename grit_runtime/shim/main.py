"""The program that the launcher of containerd-shim-grit-v1 runs where no zygote answers for it."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the action that containerd asks for; the arguments are the launcher and its own.

    containerd reads standard error with the answer, so that a success leaves it empty.
    """
    here = os.path.abspath(__file__)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from grit_runtime.shim import actions  # noqa: PLC0415  found only now

    launcher, *words = sys.argv[1:]
    try:
        answer = actions.run(launcher, words)
    except Exception as error:  # noqa: BLE001  containerd shows its user whatever is said here
        sys.stderr.write(f"containerd-shim-grit-v1: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os.write(1, answer)
    os._exit(0)


if __name__ == "__main__":
    main()
