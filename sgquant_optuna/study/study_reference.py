"""Which file or module makes the models of a study: its name and its hash, never its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

DEFAULT_FUNCTION = "study"


@dataclass(frozen=True)
class StudyReference:
    """The function that returns the :class:`.OwnStudy` of a study.

    A study keeps it so that people know what to bring, and so that a worker can compare the file
    that its user named. Nothing is ever imported because a study says so.

    Args:
        text:
            Words of the user: ``FILE.py``, ``FILE.py:function`` or ``package.module:function``.
        sha256:
            Hash of the file, or of the module's file, in hexadecimal digits; empty before it is
            read.

    Raises:
        ValueError:
            If the text is of neither form.
    """

    text: str
    sha256: str = ""

    def __post_init__(self) -> None:
        """Check the form, so that a mistake shows before anything is read."""
        is_dotted = all(part.isidentifier() for part in self.target.split("."))
        if not self.function.isidentifier() or not (self.is_file or is_dotted):
            raise ValueError(
                f"--study: expected FILE.py, FILE.py:function or package.module:function, got "
                f"{self.text!r} (--name gives a study its name)"
            )

    @property
    def target(self) -> str:
        """The file or the module."""
        return self.text if self.text.endswith(".py") else self.text.rpartition(":")[0]

    @property
    def function(self) -> str:
        """Name of the function."""
        default = DEFAULT_FUNCTION if self.text.endswith(".py") else ""
        return self.text[len(self.target) + 1 :] or default

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and not a module."""
        return self.target.endswith(".py")

    @property
    def short_name(self) -> str:
        """A few words for the name of a study: the file without folder and ending."""
        stem = Path(self.target).stem if self.is_file else self.target.rpartition(".")[2]
        return stem if self.function == DEFAULT_FUNCTION else f"{stem}-{self.function}"

    @property
    def placeholder(self) -> str:
        """Argument of ``--study`` that a reader completes: no file is run that a study names."""
        if not self.is_file:
            return f"package.module:{self.function}"
        return "FILE.py" if self.function == DEFAULT_FUNCTION else f"FILE.py:{self.function}"

    @property
    def fingerprint(self) -> str:
        """What tells two of them apart, wherever their files are."""
        return f"{self.function}() of a file with SHA-256 {self.sha256[:16]}"

    def matches(self, other: StudyReference) -> bool:
        """Tell whether both are the same function of the same content."""
        return (self.function, self.sha256) == (other.function, other.sha256)

    def absolute(self) -> StudyReference:
        """Return the same, for a process of another folder."""
        if not self.is_file:
            return self
        path = Path(self.target).expanduser().absolute()
        return replace(self, text=f"{path}{self.text[len(self.target) :]}")
