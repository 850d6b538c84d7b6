"""A run folder that several processes work on: the first one owns it and writes it, all get its
answers.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from namm_jax.experiment.folder import Run
from namm_jax.experiment.processes import from_first


class SharedRun:
    """A `Run`, opened by process 0, whose methods every process calls, all in the same order.

    On one process it is that run. An error that one of them raises is raised on every process.

    Attributes:
        directory: the folder, on a disk that all processes share.
        config: the resolved config.
        discarded: the stages whose results this opening discarded.
    """

    def __init__(self, open_run: Callable[[], Run]) -> None:
        """Opens the folder.

        Args:
            open_run: returns the run; called on process 0 alone.
        """
        self._run: Run | None = None

        def opened() -> dict[str, Any]:
            self._run = open_run()
            return {
                'directory': str(self._run.directory),
                'config': self._run.config,
                'discarded': self._run.discarded,
            }

        facts = from_first(opened)
        self.directory, self.config, self.discarded = (
            Path(facts['directory']),
            facts['config'],
            facts['discarded'],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._run is not None:
            self._run.close()

    def record(self, stage: str) -> dict[str, Any] | None:
        """As `Run.record`."""
        return from_first(lambda: self._run.record(stage))

    def finished(self, stage: str) -> bool:
        """As `Run.finished`."""
        return from_first(lambda: self._run.finished(stage))

    def begin(self, stage: str, sections: Iterable[str]) -> Path:
        """As `Run.begin`."""
        return Path(from_first(lambda: str(self._run.begin(stage, sections))))

    def finish(self, stage: str, **facts: Any) -> None:
        """As `Run.finish`; the facts are those of process 0."""
        from_first(lambda: self._run.finish(stage, **facts))

    def log(self, record: Mapping[str, Any]) -> None:
        """As `Run.log`; the record is that of process 0."""
        from_first(lambda: self._run.log(record))

    def drop_records(self, stage: str, after_step: int) -> None:
        """As `Run.drop_records`."""
        from_first(lambda: self._run.drop_records(stage, after_step))

    def merge_metrics(self, values: Mapping[str, Any]) -> None:
        """As `Run.merge_metrics`; the values are those of process 0."""
        from_first(lambda: self._run.merge_metrics(values))
