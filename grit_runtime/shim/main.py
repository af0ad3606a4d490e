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
    # asyncio can do without ssl, which takes as long to import as all else of it.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(here))))
    try:
        answer = _answer(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001  containerd shows its user whatever is said here
        sys.stderr.write(f"containerd-shim-grit-v1: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os.write(1, answer)
    os._exit(0)


def _answer(launcher: str, *words: str) -> bytes:
    """The answer to containerd; `zygote`, an action of our own, has none and does not return."""
    from grit_runtime.shim import actions, request  # noqa: PLC0415  found only now

    if words[-1:] == ("zygote",):
        from grit_runtime.shim import zygote  # noqa: PLC0415  brings all of a shim

        zygote.run()
    asked = request.own(words)
    if asked.action != "start":
        return actions.answer(asked)
    from grit_runtime.shim import start, zygote  # noqa: PLC0415  the same

    zygote.launch(launcher)
    return start.here(asked)


if __name__ == "__main__":
    main()
