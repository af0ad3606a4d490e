"""Where checkpoints are brought from and put to: a store, a pod's volume or a peer, by its URL."""

from __future__ import annotations

from grit_runtime.agent import peers
from grit_runtime.agent.pod_volumes import open_store
from grit_runtime.files import checkpoint_dir
from grit_runtime.store import catalog, pull, push
from grit_runtime.store.catalog import Entry
from grit_runtime.store.push import Pushed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from grit_runtime.agent.peers import Address
    from grit_runtime.config import Config
    from grit_runtime.store.keys import FileKey
    from grit_runtime.store.pull import Announced, Pulled
    from grit_runtime.store.sending import Told

    class Remote(Protocol):
        """All methods block; what *told* raises ends them, and the next call goes on with it."""

        def find(self, namespace: str, name: str, sha256: str = "") -> tuple[Entry, int]:
            """The newest checkpoint of that name, or the one with that manifest; its bytes."""

        def pull(
            self,
            entry: Entry,
            told: Told,
            *,
            replace: bool = False,
            announced: Announced | None = None,
        ) -> Pulled:
            """Bring it to this node, verified and durable; *announced* as for `bring`."""

        def push(self, namespace: str, name: str, told: Told, begun: str = "") -> Pushed:
            """Put this node's checkpoint of that name there; *begun* as for a store's push."""

        def reach(self) -> None:
            """Raise what a push would, as far as that can be known before there is anything."""


def remote(url: str, config: Config, file_key: FileKey | None, host: str = "") -> Remote:
    """What is at *url*; a *file_key* is for stores alone, a *host* for a peer that is not where
    its name leads."""
    if peers.is_peer(url):
        address = peers.address(url)
        return _Peer(address._replace(host=host or address.host), config)
    return _Store(url, config, file_key)


class _Store:
    def __init__(self, url: str, config: Config, file_key: FileKey | None) -> None:
        self._url = url
        self._root = config.checkpoint_root
        self._file_key = file_key

    def find(self, namespace: str, name: str, sha256: str = "") -> tuple[Entry, int]:
        store = open_store(self._url)
        entry = catalog.find(store, namespace, name, sha256)
        return entry, catalog.read_header(store, entry).size_bytes

    def pull(
        self, entry: Entry, told: Told, *, replace: bool = False, announced: Announced | None = None
    ) -> Pulled:
        with pull.stored(open_store(self._url), entry, self._file_key) as source:
            return pull.bring(source, entry, self._root, told, replace=replace, announced=announced)

    def push(self, namespace: str, name: str, told: Told, begun: str = "") -> Pushed:
        path = f"{self._root}/{namespace}/{name}"
        store = open_store(self._url, make=True)
        return push.push(path, store, self._file_key, told, begun=begun)

    def reach(self) -> None:
        open_store(self._url, make=True)


class _Peer:
    def __init__(self, address: Address, config: Config) -> None:
        self._address = address
        self._own = peers.own(config)
        self._root = config.checkpoint_root
        self._port = config.agent_port

    def find(self, namespace: str, name: str, sha256: str = "") -> tuple[Entry, int]:
        return peers.find(self._address, self._own, namespace, name, sha256)

    def pull(
        self, entry: Entry, told: Told, *, replace: bool = False, announced: Announced | None = None
    ) -> Pulled:
        with peers.PeerSource(self._address, self._own, entry) as source:
            return pull.bring(source, entry, self._root, told, replace=replace, announced=announced)

    def push(self, namespace: str, name: str, told: Told, _begun: str = "") -> Pushed:
        """Have the peer pull it from this node's agent."""
        with checkpoint_dir.opened(f"{self._root}/{namespace}/{name}") as (_, sealed):
            entry = Entry(namespace, name, sealed.sha256, 0.0)
        done_bytes = moved_bytes = size_bytes = 0
        with peers.fetched(self._address, self._own, entry, self._port) as steps:
            for step in steps:
                told(step.done_bytes - done_bytes, step.moved_bytes - moved_bytes)
                done_bytes, moved_bytes = step.done_bytes, step.moved_bytes
                size_bytes = step.size_bytes
        return Pushed(entry, size_bytes, moved_bytes, 0, was_there=moved_bytes == 0)

    def reach(self) -> None:
        peers.listing(self._address, self._own)
