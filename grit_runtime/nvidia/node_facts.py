"""This node, as far as it decides what can be restored on it, with its GPUs."""

from __future__ import annotations

from grit_runtime.host import criu, node, process
from grit_runtime.model.compatibility import Facts
from grit_runtime.model.manifest import Gpu
from grit_runtime.nvidia import gpu_driver, suspension

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.config import Config


def here(config: Config, *, with_gpus: bool) -> Facts:
    """Asks CRIU, and the driver if *with_gpus*, which takes a process that loads its libraries."""
    criu.prefer(config.criu)
    token = process.new_token()
    asked = criu.start_version(token)
    version = ""
    gpus: tuple[Gpu, ...] = ()
    if with_gpus:
        with suspension.opened_driver(token) as driver:
            if driver:
                version, cards = gpu_driver.cards(driver)
                gpus = tuple(Gpu(card.uuid, card.model, card.total_bytes) for card in cards)
    return Facts(node.facts(criu.read_version(asked), driver=version), gpus)
