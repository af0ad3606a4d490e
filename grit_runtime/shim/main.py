"""The program that the launcher of containerd-shim-grit-v1 runs where no zygote answers for it."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the action that containerd asks for; the arguments are the launcher and its own.

    containerd reads standard error together with the answer, so a success writes nothing to it.
    """
    here = os.path.abspath(__file__)
    # asyncio works without ssl, which takes as long to import as the rest of asyncio.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(here))))
    try:
        answer = _answer(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001  containerd shows its user what is printed here
        sys.stderr.write(f"containerd-shim-grit-v1: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os.write(1, answer)
    os._exit(0)


def _answer(launcher: str, *words: str) -> bytes:
    """The answer to containerd; `zygote`, an action of this shim's own, does not return."""
    from grit_runtime.shim import actions, request  # found only now

    if words[-1:] == ("zygote",):
        from grit_runtime.shim import zygote  # brings all of a shim

        zygote.run()
    call = request.of_this_process(words)
    if call.action != "start":
        return actions.answer(call)
    from grit_runtime.shim import start, zygote  # the same

    zygote.launch(launcher)
    return start.start_in_process(call)


if __name__ == "__main__":
    main()
