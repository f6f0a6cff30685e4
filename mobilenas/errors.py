"""The exception tree. Each class carries the exit code of the command that ends with it.

MobileNASError
  UsageError             bad flag or value, unit missing, unknown key, contradictory values        exit 2
    UnknownNameError       no such method, space, device, runtime, table or data set
    IncompatibleError      method x space, runtime x device x precision, table of another device
  DocumentError          bad table, architecture, checkpoint, ONNX or data set                     exit 3
    MissingKernelError     not in the table
    MissingDataError       data set not found
  DeviceError            the device or its runner failed                                           exit 4
    LinkError
      LostLinkError          a further try may help
    DeviceTimeoutError
    RunnerError
      CrashError             it ended before its time: one model may be to blame
      UnavailableError       the engine has nothing to run on
  BudgetError            infeasible, exceeded after the last round, or only an estimate            exit 5
  MeasurementError       too few samples, unstable, drift over the limit                           exit 6
  VerificationError      the exported model disagrees                                              exit 7
  ResourceError          missing extra, no disk, out of memory after retries                       exit 8
    LostProcessError       one of several processes ended or does not answer
  DivergedError          loss not finite after the roll-back                                       exit 9
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class MobileNASError(Exception):
    """Root of every error that a user can do something about; the message says what, where, what is allowed, what to do."""

    exit_code = 1


class UsageError(MobileNASError, ValueError):
    """A flag, value or key is wrong, or two of them contradict each other."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry knows."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        near = nearest_names(name, self.known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"no {kind} named {name!r}: {hint}available: {', '.join(self.known) or 'none'}")


class IncompatibleError(UsageError):
    """Two choices that are fine alone cannot go together."""


class DocumentError(MobileNASError, ValueError):
    """A file is not what it claims to be; the message names the file and the place in it."""

    exit_code = 3


class MissingKernelError(DocumentError):
    """A latency table lacks kernels that a network needs; the message holds the nearest rows and the profile command."""


class MissingDataError(DocumentError):
    """A data set is not on this machine; the message says how to get it."""


class DeviceError(MobileNASError):
    """The device, the link to it or the program on it failed."""

    exit_code = 4


class LinkError(DeviceError):
    """The device cannot be reached, or a file cannot be moved."""


class LostLinkError(LinkError):
    """The device does not answer, or the connection to it broke: it may come back."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer in time."""


class RunnerError(DeviceError):
    """The runner ended with an error, crashed, or printed something outside its protocol.

    ``refused`` holds the engine's complaint of each model that it would not run, by name, where that is all that went wrong.
    """

    def __init__(self, message: str, refused: Mapping[str, str] | None = None) -> None:
        self.refused = dict(refused or {})
        super().__init__(message)


class CrashError(RunnerError):
    """The runner was ended by a signal, or ended itself with an error, instead of saying what went wrong."""


class UnavailableError(RunnerError):
    """The engine is on the device, and what it would run on is not: a GPU, or its driver."""


class BudgetError(MobileNASError):
    """No architecture meets the budget, or the one found does not."""

    exit_code = 5


class MeasurementError(MobileNASError):
    """A measurement that cannot be trusted: too few samples, unstable, or drifting."""

    exit_code = 6


class VerificationError(MobileNASError):
    """The exported model computes something else than the network it came from."""

    exit_code = 7


class ResourceError(MobileNASError):
    """Something the machine lacks: an optional package, disk space, memory."""

    exit_code = 8


class LostProcessError(ResourceError):
    """Of several processes at one search or training another one ended, hangs, or went another way."""


class DivergedError(MobileNASError):
    """The loss is not finite and rolling back did not help."""

    exit_code = 9


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """``"; did you mean a or b?"``, or nothing where no name is near."""
    near = nearest_names(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three of ``known`` that look like ``name``, the closest first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.5)
