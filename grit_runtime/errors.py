"""The exceptions of grit-runtime, and their text.

A message is one line, lower case: it names the object, what was expected, and what to do. Each
class is a reason, in CamelCase, that scripts and alerts go by; docs/errors.md has a row for each.
OSError is not wrapped; it carries its path. The entry points (cli, oci) turn these into exit codes
and log lines.
"""

import os


class GritError(Exception):
    """An error for a person or an orchestrator; any other exception that escapes is a bug."""

    reason = ""


class InvalidArgumentError(GritError):
    """The caller asked for something that cannot be meant: a bad name, option or flag."""

    reason = "InvalidArgument"


class AnnotationError(InvalidArgumentError):
    """An annotation is unknown, or its value means nothing."""

    reason = "AnnotationInvalid"


class ConfigurationError(InvalidArgumentError):
    """The node's configuration, or a file that it names, means nothing."""

    reason = "ConfigurationInvalid"


class NotFoundError(GritError):
    """A pod, container, checkpoint or program that should be there is not."""

    reason = "NotFound"


class AlreadyExistsError(GritError):
    """The name is taken."""

    reason = "AlreadyExists"


class FailedPreconditionError(GritError):
    """The object is in a state that does not allow the request."""

    reason = "FailedPrecondition"


class PodStateError(FailedPreconditionError):
    """The pod, or a container of it, is in a state in which this cannot be done."""

    reason = "PodNotReady"


class HeldError(FailedPreconditionError):
    """The pod is held for a checkpoint, or is not and should be."""

    reason = "PodHeld"


class SecondLifeError(FailedPreconditionError):
    """Another pod of this node goes on from the checkpoint already."""

    reason = "StateInUse"


class NotDumpableError(FailedPreconditionError):
    """The pod has what CRIU cannot dump, or what could not come back."""

    reason = "NotDumpable"


class ConnectionsError(FailedPreconditionError):
    """Nobody has decided what becomes of TCP connections."""

    reason = "ConnectionsUndecided"


class StrictError(FailedPreconditionError):
    """Something would come back different, and the pod or the caller is strict."""

    reason = "StrictRefused"


class VolumeError(FailedPreconditionError):
    """A volume does not go along, is missing in the pod, or cannot be saved or put back."""

    reason = "VolumeNotCarried"


class RoomError(FailedPreconditionError):
    """Disk or memory are too small for what is to be written."""

    reason = "NoRoom"


class FileDiffersError(FailedPreconditionError):
    """A file that the dump has open is not in the new pod as it was."""

    reason = "FileDiffers"


class NewerFormatError(FailedPreconditionError):
    """What is kept on the node was written by a newer grit."""

    reason = "NewerFormat"


class ReadBackError(FailedPreconditionError):
    """CRIU has not restored what was dumped."""

    reason = "RestoredDiffers"


class GpuError(FailedPreconditionError):
    """The pod's GPU memory cannot be moved as it is, or not onto these cards."""

    reason = "GpuNotMovable"


class NotArrivedError(FailedPreconditionError):
    """A checkpoint is still on its way to this node."""

    reason = "NotArrived"


class ArrivalFailedError(FailedPreconditionError):
    """A checkpoint that was on its way to this node does not come."""

    reason = "ArrivalFailed"


class PodDiffersError(FailedPreconditionError):
    """A pod is not as the one was that a checkpoint was taken of."""

    reason = "PodDiffers"


class NoNodeError(FailedPreconditionError):
    """No node of the cluster can take the pod."""

    reason = "NoNode"


class NotRestoredError(FailedPreconditionError):
    """A pod that was to be restored has started without its checkpoint, or has ended."""

    reason = "NotRestored"


class ConflictError(GritError):
    """The object has changed since it was read."""

    reason = "Conflict"


class UnauthenticatedError(GritError):
    """The caller has not shown who it is."""

    reason = "Unauthenticated"


class PermissionDeniedError(GritError):
    """The caller may not do that."""

    reason = "PermissionDenied"


class CancelledError(GritError):
    """Somebody has ended it on purpose."""

    reason = "Cancelled"


class DeadlineExceededError(GritError):
    """The other side did not answer in time; it may still do what was asked."""

    reason = "DeadlineExceeded"


class ResourceExhaustedError(GritError):
    """A message is longer than its protocol allows."""

    reason = "ResourceExhausted"


class UnavailableError(GritError):
    """The other side is not there, or was away for too long; asking again later may help."""

    reason = "Unavailable"


class BusyError(GritError):
    """It is being done; who asks again later will find it done."""

    reason = "TooManyRequests"  # Kubernetes' word, which clients of its API go by


class UnimplementedError(GritError):
    """The other side does not know what was asked."""

    reason = "Unimplemented"


class ProtocolError(GritError):
    """The other side sent what its protocol does not allow."""

    reason = "ProtocolViolated"


class ImageError(GritError):
    """A checkpoint holds bytes that are not what they claim to be."""

    reason = "CheckpointDamaged"


class LayerError(ImageError):
    """An rw layer or a volume's archive is damaged, or reaches out of its root."""

    reason = "LayerDamaged"


class ManifestError(ImageError):
    """A manifest is missing, damaged, or of a newer version."""

    reason = "ManifestInvalid"


class DigestError(ImageError):
    """Files of a checkpoint are not what its manifest says."""

    reason = "DigestMismatch"


class SignatureError(ImageError):
    """A checkpoint is not signed by a key that the node trusts."""

    reason = "SignatureInvalid"


class DamagedError(ImageError):
    """What a store or a peer gives is not what was put there."""

    reason = "StoreDamaged"


class TamperedError(ImageError):
    """What a store gives is whole, but was not encrypted with the checkpoint's key."""

    reason = "StoreTampered"


class WrongKeyError(FailedPreconditionError):
    """The store's checkpoint is encrypted with another key, or with none that is known here."""

    reason = "WrongKey"


class NoStoreError(FailedPreconditionError):
    """What should be a store is not one, or cannot be used as one."""

    reason = "NotAStore"


class PeerError(FailedPreconditionError):
    """The node at the other end is not the one that was meant, or not of the same CA."""

    reason = "PeerUntrusted"


class StoreBusyError(FailedPreconditionError):
    """Somebody else works on what must not change meanwhile."""

    reason = "StoreBusy"


class PrivilegeError(GritError):
    """A dumped task holds more than the live pod spec grants."""

    reason = "PrivilegesExceeded"


class MountError(PrivilegeError):
    """A mount of the dump is none of the pod's, or grants more."""

    reason = "MountDiffers"


class SeccompError(PrivilegeError):
    """A seccomp filter of the dump is none of the pod's, or lets more pass."""

    reason = "SeccompDiffers"


class CgroupError(PrivilegeError):
    """A task of the dump is in a cgroup that is none of the container's."""

    reason = "CgroupDiffers"


class LinkError(PrivilegeError):
    """A name of the dump leads through a symbolic link."""

    reason = "NameIsLink"


class SourceLostError(GritError):
    """The GPU driver has killed a process, or could not bring a suspended one back."""

    reason = "SourceLost"


class CommandError(GritError):
    """A program that grit ran failed; the message ends in the program's decisive line."""

    reason = "CommandFailed"


class DumpError(CommandError):
    """`runc checkpoint` failed."""

    reason = "DumpFailed"


class RestoreError(CommandError):
    """`runc restore` failed."""

    reason = "RestoreFailed"


class DriverError(CommandError):
    """A call of the GPU driver failed."""

    reason = "DriverFailed"


class InterruptedTaskError(GritError):
    """What another process of grit did has ended by a signal, or a bug in grit."""

    reason = "Interrupted"


class SystemCallError(GritError):
    """A system call of another process of grit has failed; of this one it is an OSError."""

    reason = "SystemCallFailed"


INTERRUPTED = InterruptedTaskError.reason
SYSTEM_CALL = SystemCallError.reason


def reason(error: BaseException) -> str:
    """The reason of an error, never empty; all failed system calls have the same one."""
    if isinstance(error, GritError) and error.reason:
        return error.reason
    return SYSTEM_CALL if isinstance(error, OSError) else INTERRUPTED


def of_reason(name: str) -> type[GritError]:
    """The class that has this reason; GritError itself for one that is not known here."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type)]
    return next(
        (kind for kind in kinds if issubclass(kind, GritError) and kind.reason == name), GritError
    )


def told(error: Exception) -> str:
    """What the entry points print: the message, and the reason for scripts in brackets."""
    return f"{one_line(error)} ({reason(error)})"


def one_line(error: Exception) -> str:
    """The message of a GritError, or the object and the reason of a failed system call."""
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return printable(str(error))


def printable(text: str) -> str:
    """*text* without characters that break a line or control a terminal: names are untrusted."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
