"""When the checkpoints of a CheckpointSchedule are due. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model import durations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.manager.api import CheckpointScheduleSpec

    After = Callable[[float], float]  # the time that follows another, in seconds since the epoch

_CRON_FIELDS = 5  # cronsim takes six, too: with seconds


def is_cron(text: str) -> bool:
    """Whether *text* is five fields that mean some time."""
    try:
        return (
            len(text.split()) == _CRON_FIELDS and next(CronSim(text, datetime.now(UTC))) is not None
        )
    except (CronSimError, StopIteration):
        return False


def after(spec: CheckpointScheduleSpec) -> After | None:
    """What the schedule goes by; None: by no clock. InvalidArgumentError if it means nothing."""
    if spec.interval:
        interval_s = durations.seconds(spec.interval)
        return lambda moment: moment + interval_s
    if spec.cron:
        if not is_cron(spec.cron):
            raise InvalidArgumentError(
                f"cron: {spec.cron[:60]!r} is not five fields that mean some time"
            )
        return lambda moment: next(
            CronSim(spec.cron, datetime.fromtimestamp(moment, UTC))
        ).timestamp()
    return None
