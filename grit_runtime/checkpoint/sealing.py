"""Describing what was dumped, and giving the checkpoint its name."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager

from grit_runtime import log
from grit_runtime.checkpoint.dumping import Dumps, exited
from grit_runtime.errors import AlreadyExistsError
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import criu, linux, runc
from grit_runtime.host import node as this_node
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import manifest as manifests
from grit_runtime.model.manifest import Manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.checkpoint import preflight, standstill
    from grit_runtime.checkpoint.order import Context


def ended(dumps: Dumps) -> list[manifests.Container]:
    pod = dumps.context.order.pod
    return [exited(pod, c, dumps.chosen) for c in pod.containers if c.state == "exited"]


def manifest(
    dumps: Dumps,
    looked: preflight.Looked,
    suspended: standstill.Suspended,
    captured: tuple[str, ...],
    containers: list[manifests.Container],
) -> Manifest:
    """Compute digests of all files in the staging directory, and describe them."""
    context = dumps.context
    with context.timeline.phase("digest") as entry:
        files = checkpoint_dir.contents(context.staging_dir, dumps.digests)
        entry["size_bytes"] = sum(file.size_bytes for file in files)
    pod = context.order.pod
    criu_asked, runc_asked = looked.versions
    return Manifest(
        version=manifests.VERSION,
        name=context.order.name,
        created=log.rfc3339(),
        pod=manifests.Pod(pod.namespace, pod.name, pod.uid, pod.sandbox_id),
        captured=captured,
        containers=tuple(containers),
        files=files,
        node=this_node.facts(
            criu.read_version(criu_asked),
            runc=runc.read_version(runc_asked),
            containerd=context.order.containerd_version,
            driver=suspended.survey.version if suspended.survey else "",
        ),
        options=manifests.Options(file_locks=True),
        timeline=manifests.phases(context.timeline.phases),
        warnings=dumps.losses,
    )


@contextmanager
def written_back(context: Context) -> Iterator[None]:
    """Write the checkpoint's filesystem to its medium while the block runs, if the source ends.

    A source that runs on can be checkpointed again; one that ends has only this checkpoint. The
    sync must be waited for: the kernel reports lost data to nobody else.
    """
    if context.order.after != "stopped":
        yield
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(linux.sync_filesystem, context.staging_dir)
        yield
        with context.timeline.phase("sync"):
            done.result()


def _sign(manifest: Manifest, staging_dir: str, signing_key: str) -> None:
    if signing_key:
        from grit_runtime.files import signature  # few configure it

        with open(f"{staging_dir}/{manifests.SIGNATURE_NAME}", "xb") as file:
            file.write(signature.sign(manifests.dump(manifest), signing_key))


def seal(context: Context, manifest: Manifest) -> None:
    """Write the manifest last and give the directory its name; synced if the source ends.

    AlreadyExistsError if another checkpoint has got it meanwhile, and none is to be replaced.
    Until the caller has recorded that the checkpoint is final, an undo takes the name back, and
    what had it before is in the staging directory.
    """
    staging_dir, final_dir = context.staging_dir, context.final_dir
    is_last = context.order.after == "stopped"
    _sign(manifest, staging_dir, context.config.signing_key)
    data = manifests.dump(manifest)
    with open(f"{staging_dir}/{manifests.FILE_NAME}", "xb") as file:
        file.write(data)
    if is_last:
        linux.sync_filesystem(staging_dir)
    context.journal.record(steps.Sealing(final_dir, staging_dir, hashlib.sha256(data).hexdigest()))
    if context.order.replace and os.path.lexists(final_dir):
        linux.exchange(staging_dir, final_dir)
    else:
        try:
            linux.rename_new(staging_dir, final_dir)
        except FileExistsError:
            raise AlreadyExistsError(
                f"checkpoint {final_dir} was made while this one was taken; choose another name or "
                "--replace"
            ) from None
    if is_last:
        linux.sync_filesystem(os.path.dirname(final_dir))
