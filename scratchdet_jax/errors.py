"""The exceptions that users see, and how they are worded."""

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path


class UserError(Exception):
    """Something in the user's files, flags or environment is wrong, and the user can fix it.

    The message is one clear sentence: what is wrong, where, and what to do. Entry points print it
    without a traceback and exit with status 1.
    """


class FieldsError(UserError):
    """A UserError that the same command with other config fields avoids.

    Its message has one line for each command that the user can copy.

    Attributes:
        fields: the fields and their values, such as {"data.train": "voc_folder/mine:train"}.
    """

    def __init__(self, message: str, fields: Mapping[str, str], ending: str = "") -> None:
        """Takes the `message` before the command with the fields, and the `ending` after it."""
        super().__init__(message, fields, ending)
        self.fields = fields

    def text(self, command: str) -> str:
        """Returns the message, given the user's command without the fields."""
        message, fields, ending = self.args
        overrides = (shlex.quote(f"--config.{name}={value}") for name, value in fields.items())
        return "\n".join(filter(None, [message, f"  {command} {' '.join(overrides)}", ending]))

    def __str__(self) -> str:
        return self.text("python train.py --config=RECIPE")


def one_line(error: object, limit: int = 300) -> str:
    """Puts an exception's text on one line, cut after `limit` characters; else its type.

    Suitable as part of a UserError's message.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "…"


def plural(count: int, noun: str) -> str:
    """Writes a count and its noun: "1 image", "2 images", "3 boxes", "2 classes"."""
    many = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{count:,} {noun if count == 1 else many}"


def writable_folder(path: Path, flag: str) -> Path:
    """Creates a folder if it is missing; a UserError names `flag` if it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be written ({error.strerror}): choose another folder"
        ) from None
    return path
