"""The exceptions that users see, and how they are worded."""


class UserError(Exception):
    """Something in the user's files, flags or environment is wrong, and the user can fix it.

    The message is one clear sentence: what is wrong, where, and what to do. Entry points print it
    without a traceback and exit with `status`.
    """

    status = 1


class Unavailable(UserError):
    """Something does not respond; the same command resumes when it does."""

    status = 69  # EX_UNAVAILABLE


class BucketError(OSError, UserError):
    """A bucket cannot be used: an OSError for code that expects files, and a sentence for users."""

    def __init__(self, number: int, reason: str, bucket: str) -> None:
        super().__init__(number, reason)
        self.bucket = bucket

    def __str__(self) -> str:
        return (
            f"{self.bucket} cannot be used ({self.strerror}): check its name, your rights "
            "(`gcloud auth application-default login`, or the credentials of AWS) and the network"
        )


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
