"""Drives episodes with several processes of the simulator at once, and records each as it ends.

An episode that the harness could not measure becomes a line with its reason; it is no failure of the
policy. What cannot get better by itself ends the evaluation: a server that is gone, a full disk, a simulator
that dies again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from harness.artifacts.episodes import Episode, Key
from harness.errors import HarnessError
from harness.evaluate.drive import Order, drive, not_measured
from harness.evaluate.record import Recorder
from harness.evaluate.remote import LOST, Remote
from harness.evaluate.schedule import Dispatch
from harness.evaluate.simulator import GONE, Simulator
from harness.evaluate.videos import Kept, Video, wanted

# How often a worker's process is started again without an episode measured in between.
RESTARTS = 3
# So many episodes in a row that nothing was measured of, for each worker and at least: the cause stays.
_IN_A_ROW, _LEAST_IN_A_ROW = 3, 6
# How long a server that closed a connection is waited for, in seconds, one try after the other.
_TRIES_S = (0.0, 1.0, 3.0, 6.0)
# A server that gave no answer so often, connected anew in between, gives none.
_MOST_LOST = 2


class Means(NamedTuple):
    """What episodes are driven with.

    `start` makes a ready process of the simulator. `connect` makes a connection to the policy; None for a
    control. `ended` says why the policy's server has ended, if it has. `heard` is told each recorded episode,
    one at a time. `enough` says after each whether no more are needed.
    """

    start: Callable[[], Simulator]
    connect: Callable[[], Remote] | None
    ended: Callable[[], HarnessError | None]
    heard: Callable[[Episode], None]
    enough: Callable[[], bool]
    warn: Callable[[str], None]


class Pool:
    """Workers, each with a process of the simulator and a connection of its own."""

    def __init__(
        self, recorder: Recorder, left: Dispatch, order: Order, means: Means, videos: Kept = "none"
    ) -> None:
        self._recorder, self._left, self._order, self._means = recorder, left, order, means
        self._videos = videos
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._simulators: dict[int, Simulator] = {}
        self._in_a_row = 0
        self._workers = 0
        self._fatal: BaseException | None = None
        self._gave_up: HarnessError | None = None
        self.lost_videos = 0
        # The words of each task that was driven.
        self.prompts: dict[tuple[str, int], str] = {}

    def run(self, workers: int) -> None:
        """Drives all episodes that are left.

        An exception in the calling thread (a signal's) loses the episodes under way, and nothing else.
        Raises: HarnessError of whatever ended it before.
        """
        self._workers = workers
        threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    # In short steps: a signal is heard between them.
                    thread.join(0.2)
        finally:
            self._end()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._fatal is not None:
            raise self._fatal
        if self._gave_up is not None and self._left.take(-1) is not None and not self._means.enough():
            raise self._gave_up

    def _end(self) -> None:
        self._ended.set()
        with self._lock:
            for simulator in self._simulators.values():
                simulator.kill()

    def _work(self, worker: int) -> None:
        try:
            self._episodes(worker)
        except BaseException as error:
            # Whatever happened after a stop was caused by it.
            if not self._ended.is_set():
                self._fatal = error
                self._end()
        finally:
            with self._lock:
                self._left.leave(worker)
                simulator = self._simulators.pop(worker, None)
            if simulator is not None:
                simulator.end(kill=self._ended.is_set())

    def _episodes(self, worker: int) -> None:
        """One episode after the other, until none is left for this worker."""
        remote = self._connected()
        deaths = lost = 0
        try:
            while (key := self._next(worker)) is not None:
                error = self._one(worker, key, remote)
                if error is None:
                    deaths = lost = 0
                    continue
                if self._ended.is_set():
                    return
                self._check(error)
                deaths += self._forget_dead(worker, error)
                if error.code in LOST:
                    lost += 1
                    remote = self._again(remote, lost, error)
                if deaths > RESTARTS:
                    self._gave_up = error
                    return
        finally:
            if remote is not None:
                remote.close()

    def _next(self, worker: int) -> Key | None:
        with self._lock:
            return None if self._ended.is_set() or self._means.enough() else self._left.take(worker)

    def _connected(self) -> Remote | None:
        return None if self._means.connect is None else self._means.connect()

    def _one(self, worker: int, key: Key, remote: Remote | None) -> HarnessError | None:
        """Drives and records one episode; why it could not be measured, if it could not."""
        fps, error = self._order.fps, None
        video = None if fps is None or self._videos == "none" else Video(fps)
        try:
            simulator = self._started(worker)
            episode = drive(
                simulator,
                remote,
                key,
                self._order,
                self._recorder.sha256,
                video=video,
                prompted=lambda words: self.prompts.__setitem__((key.suite, key.task), words),
            )
        except HarnessError as raised:
            episode, error = not_measured(key, self._recorder.sha256, raised), raised
        with self._lock:
            # An episode that a stop has cut is lost.
            if self._ended.is_set():
                return error
            self._recorder.add(episode)
            self._in_a_row = 0 if episode.measured else self._in_a_row + 1
            self._means.heard(episode)
        if video is not None and wanted(self._videos, episode.outcome):
            self._write_video(video, episode)
        return error

    def _started(self, worker: int) -> Simulator:
        simulator = self._simulators.get(worker)
        if simulator is None:
            simulator = self._means.start()
            with self._lock:
                self._simulators[worker] = simulator
                if self._ended.is_set():
                    simulator.kill()
        return simulator

    def _write_video(self, video: Video, episode: Episode) -> None:
        """Writes a video. Without room for it the episode counts all the same."""
        try:
            video.write(self._recorder.directory.path, episode.key, episode.outcome)
        except HarnessError as error:
            with self._lock:
                self.lost_videos += 1
                if self.lost_videos == 1:
                    self._means.warn(
                        f"the video of {episode.key} was not kept [{error.code}]: {error.what}"
                        f"{f' ({error.got})' if error.got else ''}; its outcome is recorded; fix: {error.fix}"
                    )

    def _forget_dead(self, worker: int, error: HarnessError) -> int:
        """1 if the worker's process cannot be asked any longer; the next episode starts another."""
        if error.code not in GONE and not error.code.startswith(("frame-", "simulator-")):
            return 0
        with self._lock:
            simulator = self._simulators.pop(worker, None)
        if simulator is not None:
            simulator.end(kill=True)
        return 1

    def _check(self, error: HarnessError) -> None:
        """Ends the evaluation where no further episode can be measured.

        Raises: HarnessError "evaluation-stuck"; the error of the server that has ended.
        """
        ended = self._means.ended()
        if ended is not None:
            raise ended
        if self._in_a_row >= max(_LEAST_IN_A_ROW, _IN_A_ROW * self._workers):
            raise HarnessError(
                "evaluation-stuck",
                f"{self._in_a_row} episodes in a row could not be measured; none of them counts",
                got=f"at last [{error.code}] {error.what}" + (f": {error.got}" if error.got else ""),
                need=error.need,
                fix=f"{error.fix}; then go on with --resume",
            )

    def _again(self, remote: Remote | None, lost: int, error: HarnessError) -> Remote | None:
        """A new connection, if the server is still there.

        Raises: HarnessError, the first `error` or that of the last try.
        """
        if remote is not None:
            remote.close()
        if lost >= _MOST_LOST:
            raise error
        for wait_s in _TRIES_S:
            if self._ended.wait(wait_s):
                return None
            ended = self._means.ended()
            if ended is not None:
                raise ended
            try:
                return self._connected()
            except HarnessError as raised:
                error = raised
        raise error
