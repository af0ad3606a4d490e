"""What the commands that know a store have in common, and these: push, pull, ls, rm, gc."""

from __future__ import annotations

import json
import re

import click

from grit_runtime import config
from grit_runtime.cli import progress
from grit_runtime.errors import InvalidArgumentError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.store.collect import Garbage
    from grit_runtime.store.keys import FileKey
    from grit_runtime.store.push import Pushed
    from grit_runtime.store.records import Unlocked

_STORE = click.argument("store")
_KEY = click.option(
    "--key-file",
    metavar="FILE",
    help="The key that data keys are wrapped with; the configuration's store_key by default.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@click.command()
@click.argument("checkpoint", metavar="NAMESPACE/NAME")
@_STORE
@_KEY
@_JSON
@_DRY_RUN
def push(checkpoint: str, store: str, key_file: str | None, as_json: bool, dry_run: bool) -> None:
    """Put the checkpoint NAMESPACE/NAME of this node into STORE.

    STORE is a directory (a mounted volume), or s3://BUCKET/PREFIX, gs:// or az://. An empty
    directory or bucket becomes a store. Chunks that the store has already are not sent again.
    peer://NODE has that node's agent bring it from this node's.
    """
    from grit_runtime.files import checkpoint_dir

    path = f"{config.load().checkpoint_root}/{'/'.join(_named(checkpoint))}"
    if dry_run:
        with checkpoint_dir.opened(path) as (_, sealed):
            size_bytes = sealed.manifest.size_bytes
        click.echo(f"{path}: {size_bytes} bytes would be put into {store}")
        return
    pushed = put(path, store, key_file, as_json=as_json)
    _tell(
        as_json,
        told_of(pushed, path, store),
        sha256=pushed.entry.sha256,
        size_bytes=pushed.size_bytes,
        sent_bytes=pushed.sent_bytes,
        reused_bytes=pushed.reused_bytes,
        was_there=pushed.was_there,
    )


def require(store: str) -> None:
    """Raise what a push into *store* would raise, as far as that can be known now."""
    from grit_runtime.agent import moving

    moving.remote(store, config.load(), _file_key(None)).reach()


def put(
    path: str, store: str, key_file: str | None, *, as_json: bool = False, begun: str = ""
) -> Pushed:
    """Push the checkpoint in the directory *path*, and show how far that is."""
    from grit_runtime.agent import moving
    from grit_runtime.files import checkpoint_dir

    with checkpoint_dir.opened(path) as (_, sealed):
        size_bytes = sealed.manifest.size_bytes
    remote = moving.remote(store, config.load(), _file_key(key_file))
    namespace, name = path.split("/")[-2:]
    with progress.shown("push", size_bytes, as_json=as_json) as told:
        return remote.push(namespace, name, told, begun)


def told_of(pushed: Pushed, path: str, store: str) -> str:
    """A line for people."""
    how = f"{pushed.sent_bytes} bytes sent, {pushed.reused_bytes} bytes were there"
    if pushed.was_there:
        how = "it was there"
    return f"{path}: in {store}, manifest sha256:{pushed.entry.sha256}, {how}"


@click.command()
@click.argument("checkpoint", metavar="NAMESPACE/NAME[@SHA256]")
@_STORE
@click.option(
    "--replace",
    is_flag=True,
    help="Replace what has that name: another checkpoint, or this one, damaged.",
)
@_KEY
@_JSON
@_DRY_RUN
def pull(
    checkpoint: str,
    store: str,
    replace: bool,
    key_file: str | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Bring the checkpoint NAMESPACE/NAME from STORE to this node: the newest, or that very one.

    It has its name when all of it is verified and on the disk. A pull that was interrupted goes on
    where it was. STORE may be another node's agent, peer://NODE.
    """
    from grit_runtime.agent import moving  # an extra

    name, _, sha256 = checkpoint.partition("@")
    remote = moving.remote(store, config.load(), _file_key(key_file))
    entry, size_bytes = remote.find(*_named(name), sha256.removeprefix("sha256:"))
    if dry_run:
        click.echo(f"{name}@{entry.sha256}: {size_bytes} bytes would be brought from {store}")
        return
    with progress.shown("pull", size_bytes, as_json=as_json) as told:
        pulled = remote.pull(entry, told, replace=replace)
    _tell(
        as_json,
        f"{pulled.path}: manifest sha256:{pulled.sha256}, "
        + ("it was here" if pulled.was_here else f"{pulled.received_bytes} bytes received"),
        path=pulled.path,
        sha256=pulled.sha256,
        size_bytes=pulled.size_bytes,
        received_bytes=pulled.received_bytes,
        was_here=pulled.was_here,
    )


@click.command()
@click.argument("checkpoint", metavar="NAMESPACE/NAME[@SHA256]")
@_STORE
@_KEY
@_DRY_RUN
def rm(checkpoint: str, store: str, key_file: str | None, dry_run: bool) -> None:
    """Remove the checkpoint NAMESPACE/NAME from STORE, with what only it needs."""
    from grit_runtime.store import catalog, collect
    from grit_runtime.store.backend import open_store

    name, _, sha256 = checkpoint.partition("@")
    opened = open_store(store)
    entry = catalog.find(opened, *_named(name), sha256.removeprefix("sha256:"))
    gone = collect.collect(
        opened, _unlocked(key_file), collect.Kept(), entries=[entry], dry_run=dry_run
    )
    _tell_gone(gone, dry_run=dry_run)


@click.command()
@_STORE
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Of each pod, the newest N stay.")
@click.option("--max-age", metavar="AGE", help="What is older goes: 90m, 12h, 30d.")
@_KEY
@_DRY_RUN
def gc(
    store: str, keep: int | None, max_age: str | None, key_file: str | None, dry_run: bool
) -> None:
    """Remove from STORE what nothing refers to, and checkpoints that are not to be kept."""
    from grit_runtime.store import collect
    from grit_runtime.store.backend import open_store

    kept = collect.Kept(keep, _seconds(max_age) if max_age else None)
    gone = collect.collect(open_store(store), _unlocked(key_file), kept, dry_run=dry_run)
    _tell_gone(gone, dry_run=dry_run)


@click.command()
@click.argument("store", required=False)
@_JSON
def ls(store: str | None, as_json: bool) -> None:
    """List the checkpoints of this node, or those in STORE, or of peer://NODE."""
    from grit_runtime.cli import listing

    rows = listing.of(store, config.load())
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        for line in listing.table(rows):
            click.echo(printable(line))


def _named(checkpoint: str) -> tuple[str, str]:
    from grit_runtime.model.annotations import checkpoint_name

    namespace, slash, name = checkpoint.partition("/")
    if not slash:
        raise InvalidArgumentError(f"checkpoint {checkpoint!r}: expected NAMESPACE/NAME")
    return checkpoint_name(namespace), checkpoint_name(name)


def _file_key(key_file: str | None) -> FileKey | None:
    from grit_runtime.store import records

    return records.file_key(key_file or config.load().store_key)


def _unlocked(key_file: str | None) -> Unlocked:
    from grit_runtime.store.records import Unlocked

    return Unlocked(_file_key(key_file))


def _seconds(age: str) -> float:
    found = re.fullmatch(r"(\d+)([smhd])", age)
    if not found:
        raise InvalidArgumentError(f"age {age!r}: expected a number and s, m, h or d, as in 12h")
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]


def _tell(as_json: bool, line: str, **fields: object) -> None:
    click.echo(json.dumps(fields) if as_json else printable(line))


def _tell_gone(gone: Garbage, *, dry_run: bool) -> None:
    would = "would be removed" if dry_run else "removed"
    for entry in gone.entries:
        click.echo(printable(f"{entry.namespace}/{entry.name}@{entry.sha256} {would}"))
    click.echo(f"{len(gone.packs)} packs, {gone.size_bytes} bytes {would}")
