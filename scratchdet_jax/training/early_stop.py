"""Early stopping: when the evaluations no longer improve (`config.eval.stop_after`)."""

from typing import Any, NamedTuple


class Improvement(NamedTuple):
    """The evaluations of a run so far; a checkpoint keeps it, so a resumed run decides the same.

    Attributes:
        best: the highest mAP; None if there is none.
        since: evaluations since then. An undefined mAP is no improvement.
    """

    best: float | None = None
    since: int = 0

    def after(self, score: float | None) -> "Improvement":
        """What is known after another evaluation; an equal mAP is no improvement."""
        if score is not None and (self.best is None or score > self.best):
            return Improvement(score)
        return Improvement(self.best, self.since + 1)

    def ends(self, stop_after: int) -> bool:
        """Whether a run ends that stops after `stop_after` evaluations without improvement."""
        return 0 < stop_after <= self.since

    @classmethod
    def from_json(cls, progress: dict[str, Any] | None) -> "Improvement":
        """Reads the `progress` of a checkpoint; None before the first one."""
        return cls(*(progress or {}).get("improvement", ()))
