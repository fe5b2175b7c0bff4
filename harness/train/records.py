"""What a run records while it trains: its metrics, wandb, the camera views. Its first process has them."""

from __future__ import annotations

from harness.artifacts import Manifest, Metrics
from harness.data.loader import Loader
from harness.errors import HarnessError
from harness.received.text import word
from harness.run.directory import CHECKPOINTS
from harness.run.job import Job
from harness.run.watcher import Watcher
from harness.train.metrics import MetricsFile, tell_unread
from harness.train.views import save_camera_views
from harness.train.wandb import Wandb


class Records:
    """The open `metrics` and `wandb` of a run that goes on from `start_step`."""

    def __init__(
        self, job: Job, manifest: Manifest | None, loader: Loader, watcher: Watcher, *, start_step: int
    ) -> None:
        assert manifest is not None
        self._run = job.run
        self.metrics = MetricsFile(job.run.metrics, start_step=start_step)
        if self.metrics.repeated:
            whole = f"the last whole checkpoint is of step {start_step:,}"
            watcher.say(
                f"{self.metrics.repeated:,} logged steps are computed again:"
                f" {whole if start_step else 'there is no whole checkpoint'}"
            )
        tell_unread(job.run.metrics, self.metrics.unread, watcher)
        config = manifest.model_dump(mode="json")
        self.wandb = Wandb(job.run, job.recipe, config, start_step=start_step, warn=watcher.warn)
        if start_step == 0:
            self.wandb.image("camera_views", save_camera_views(job.run.path, loader.batch(0)), 0)

    def saved(self, step: int) -> None:
        """Tells wandb of a checkpoint, and looks whether the run is still where it was.

        Raises: HarnessError "run-moved". A save makes the directories that it needs: without this the run
        would go on in two places.
        """
        self.wandb.checkpoint(step)
        if self._run.is_gone():
            now = self.metrics.directory()
            saved = self._run.checkpoints.absolute() / str(step)
            run = word("RUN" if now is None else now)
            raise HarnessError(
                "run-moved",
                f"{self._run.path} was moved or deleted while it trained; step {step} was saved to {saved}",
                got="a new directory there, with neither manifest nor metrics",
                need="a run that stays where it is until its trainer has ended",
                fix=(
                    f"mkdir -p {run}/{CHECKPOINTS} && mv {word(saved)} {run}/{CHECKPOINTS}/ && harness train"
                    f" --resume --run {run}"
                )
                + ("" if now else ", where RUN is where the run lies now"),
            )

    def write(self, lines: list[Metrics]) -> None:
        self.metrics.write(lines)
        self.wandb.write(lines)
