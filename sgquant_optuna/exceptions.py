"""Every error that this package raises on purpose.

::

    SgquantError
    ├── GraphError              a graph that cannot be loaded, or lacks a column or a mask
    ├── ModelError              a model that cannot be quantized
    │   └── UnsupportedConvError    attention asked of a convolution that we cannot reach into
    ├── TaskError               a metric without a finite value, or of another task
    ├── CalibrationError        ranges that cannot be measured, or were not measured yet
    ├── QuantizerBypassedError  a forward pass that bypassed a quantizer
    ├── PackingError            codes or packed bytes that do not fit what they declare
    ├── StorageError            a study database that cannot be opened
    ├── ArtifactError           a file of a study that cannot be written or read
    ├── StudyFileError          a file of own models that cannot be run, or returns other things
    ├── StudyNotFoundError      a study that the storage does not hold
    ├── StudyDeletedError       a study that was deleted while a worker measured its trials
    ├── StudyMismatchError      a study that belongs to another graph, model, space or protocol,
    │                           or to another version of this package
    ├── EnqueuedTrialError      a trial that was enqueued with other parameters than the study's
    └── WorkerError             a worker whose trials fail, or whose database stays away

``ExportWarning`` says, before a search, what its packed model will lack.

Bad arguments raise ``ValueError`` or ``TypeError`` at the public function that took them.
"""


class SgquantError(Exception):
    """Base of every error that this package raises on purpose."""


class GraphError(SgquantError):
    """A graph cannot be loaded, or lacks what the search needs."""


class ModelError(SgquantError):
    """A model cannot be quantized."""


class UnsupportedConvError(ModelError):
    """Attention was asked of a convolution that no registered class can quantize."""


class TaskError(SgquantError):
    """A metric has no finite value, or does not fit the task."""


class CalibrationError(SgquantError):
    """A range cannot be measured, or a quantizer was used before its range was."""


class QuantizerBypassedError(SgquantError):
    """A forward pass bypassed a quantizer, so its result would be full precision."""


class PackingError(SgquantError):
    """Codes or packed bytes do not fit the width or the shape that they declare."""


class StorageError(SgquantError):
    """A study database cannot be opened."""


class ArtifactError(SgquantError):
    """An artifact store cannot be opened or written, or holds another file than expected."""


class StudyFileError(SgquantError):
    """A file of a user's own models cannot be run, or returns something else."""


class StudyNotFoundError(SgquantError):
    """The storage does not hold the study that was asked for."""


class StudyDeletedError(SgquantError):
    """A study was deleted while a worker measured its trials."""


class StudyMismatchError(SgquantError):
    """A study was made with another graph, model, search space, protocol or version of this."""


class EnqueuedTrialError(SgquantError):
    """A trial was enqueued with a parameter that is not in the search space."""


class WorkerError(SgquantError):
    """A worker gave up: trial after trial failed, or its database stayed away."""


class ExportWarning(UserWarning):
    """A search gives right bit widths, but its model cannot be exported, or takes more bytes."""


def short_message(error: BaseException) -> str:
    """Return the message of an error as a short line: it may quote a whole file."""
    return " ".join(str(error)[:2000].split())[:200]
