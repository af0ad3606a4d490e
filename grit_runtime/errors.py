"""The exceptions of grit-runtime, and their text.

A message is one line, lower case: it names the object, what was expected, and what to do. OSError
is not wrapped; it carries its path. The doors (cli, oci) turn these into exit codes and log lines.
"""

import os


class GritError(Exception):
    """What a person or an orchestrator is told; anything else that escapes is a bug."""


class InvalidArgumentError(GritError):
    """The caller asked for something that cannot be meant: a bad annotation, name or option."""


class NotFoundError(GritError):
    """A pod, container, checkpoint or program that should be there is not."""


class AlreadyExistsError(GritError):
    """The name is taken."""


class FailedPreconditionError(GritError):
    """The object is in a state that does not allow the request."""


class DeadlineExceededError(GritError):
    """The other side did not answer in time; it may still do what was asked."""


class ResourceExhaustedError(GritError):
    """A message is longer than its protocol carries."""


class UnavailableError(GritError):
    """The other side is not there; asking again later may help."""


class UnimplementedError(GritError):
    """The other side does not know what was asked."""


class ProtocolError(GritError):
    """The other side sent what its protocol does not allow."""


class ImageError(GritError):
    """A checkpoint holds bytes that are not what they claim to be."""


class PrivilegeError(GritError):
    """A dumped task holds more than the live pod spec grants."""


class SourceLostError(GritError):
    """The GPU driver could not bring a suspended process back."""


class CommandError(GritError):
    """A program we ran failed; the message ends in its own decisive line."""


def one_line(error: GritError | OSError) -> str:
    """What the doors print: our own text, or the object of a failed system call and its reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return printable(str(error))


def printable(text: str) -> str:
    """*text* without what would break a line or steer a terminal: names come from outside too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
