"""Finds objects in pictures and films (``python -m trainer.inference.predict CONFIG --run-dir DIR``)."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.inference import PredictConfig
from trainer.protocol import OUTPUT_ON_STDERR, OUTPUT_VARIABLE
from trainer.runtime.session import Session, run_worker

if TYPE_CHECKING:
    import numpy as np

    from trainer.inference.detector import Detector
    from trainer.inference.results import ResultWriter
    from trainer.inference.sources import Frame

_UNWRITTEN = 16
"""Frames that may wait for their pictures to be written."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Predicts as the command line says; returns the exit code."""
    return run_worker("trainer.inference.predict", "Detect objects in pictures", read_config, predict, arguments)


def read_config(path: Path) -> PredictConfig:
    """Reads the configuration; if it asks for lines of JSON, stdout is left to them. Raises ConfigError."""
    config = PredictConfig.read(path)
    if config.json_lines:
        os.environ[OUTPUT_VARIABLE] = OUTPUT_ON_STDERR
    return config


def predict(session: Session, config: PredictConfig) -> None:
    """Runs the detector on every frame and keeps what was found."""
    from trainer.inference.detector import load_detector
    from trainer.inference.results import ResultWriter, Wanted
    from trainer.inference.sources import find_media, read_frames
    from trainer.inference.window import open_window

    media = find_media(config.sources, lambda error: session.reporter.warn(f"{error.what}: {error.seen}"))
    if config.show:
        open_window()
    detector = load_detector(Path(config.weights), session.device, half=config.half)
    classes = chosen_classes(config.classes, detector.names)
    image_size = detector.image_size(config.imgsz, session.reporter)
    unreadable: list[Path] = []

    def on_unreadable(path: Path, why: str) -> None:
        unreadable.append(path)
        session.reporter.warn(f"{path}: {why}")

    frames = read_frames(media, image_size=image_size, stride=detector.stride, on_unreadable=on_unreadable)
    wanted = Wanted(
        pictures=not config.nosave,
        labels=config.save_txt,
        confidences=config.save_conf,
        crops=config.save_crop,
    )
    detector.warm_up(image_size)
    teller = Teller(session, config, detector.names)
    with Keeper(ResultWriter(session.run_dir, detector.names, wanted)) as keeper:
        for frame, found in detect(session, config, detector, classes, frames):
            keeper.keep(frame, found)
            if teller.tell(frame, found):
                break
    teller.end()
    if len(unreadable) == len(media):
        from trainer.errors import DataError
        from trainer.reading.text_file import printable

        seen = printable(", ".join(map(str, unreadable[:5])))
        raise DataError("no file could be read", seen=seen, expected="pictures or films", next_command="look at them")


def chosen_classes(text: str | None, names: Sequence[str]) -> list[int] | None:
    """Returns class indices from '0,2' or 'person,car'; None for all. Raises ConfigError if the model lacks one."""
    if text is None:
        return None
    from trainer.errors import ConfigError

    chosen = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        if word in names:
            chosen.append(list(names).index(word))
        elif word.isdigit() and int(word) < len(names):
            chosen.append(int(word))
        else:
            shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:20]))
            raise ConfigError(
                "--classes names a class that the model lacks",
                seen=word,
                expected=f"of {len(names)}: {shown}{', ...' if len(names) > 20 else ''}",
                next_command="yolo-launch weights FILE shows the names in the weights",
            )
    return chosen


def detect(
    session: Session,
    config: PredictConfig,
    detector: Detector,
    classes: list[int] | None,
    frames: Iterator[Frame],
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yields each frame with its detections (n, 6) in pixels of its file, in the order of the frames."""
    import numpy as np
    import torch

    from trainer.inference.sources import batches_of_one_size
    from trainer.model.postprocess import non_max_suppression

    done: dict[int, tuple[Frame, np.ndarray]] = {}
    upcoming = 0
    session.heartbeat.beat("val")
    for batch in batches_of_one_size(frames, config.batch):
        pixels = np.stack([frame.canvas for frame in batch])
        images = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2)))
        suppressed = non_max_suppression(
            detector(images),
            confidence_threshold=config.conf,
            iou_threshold=config.iou,
            classes=classes,
            max_detections=config.max_det,
        )
        for frame, kept in zip(batch, suppressed, strict=True):
            found = kept.cpu().numpy()
            found[:, :4] = frame.in_file(found[:, :4])
            done[frame.number] = frame, found
        while upcoming in done:
            yield done.pop(upcoming)
            upcoming += 1
            session.heartbeat.beat("val", step=upcoming)


class Keeper:
    """Hands results to a thread that draws and writes them in order, and waits if that thread falls behind."""

    def __init__(self, writer: ResultWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1)
        self._unwritten: deque[Future[None]] = deque()

    def __enter__(self) -> Keeper:
        return self

    def keep(self, frame: Frame, found: np.ndarray) -> None:
        """Submits one frame's results for writing. Raises what writing an earlier frame's raised."""
        self._unwritten.append(self._pool.submit(self._writer.save, frame, found))
        while len(self._unwritten) > _UNWRITTEN:
            self._unwritten.popleft().result()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        self._writer.close()
        if kind is None:
            for future in self._unwritten:
                future.result()


class Teller:
    """Reports what was found as it is found: lines of JSON, lines for people, a window."""

    def __init__(self, session: Session, config: PredictConfig, names: tuple[str, ...]) -> None:
        self._session = session
        self._config = config
        self._names = names
        self._frames = 0
        self._boxes = 0
        self._started_at = time.monotonic()

    def tell(self, frame: Frame, found: np.ndarray) -> bool:
        """Reports one frame's results; returns True if no further ones are wanted."""
        from trainer.inference import results, window

        if frame.note:
            self._session.reporter.warn(f"{frame.path}: {frame.note}")
        self._frames += 1
        self._boxes += len(found)
        if self._config.json_lines:
            try:
                sys.stdout.write(results.as_json(frame, found, self._names) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                # The reader has gone; a second failure while Python flushes at exit would print a traceback.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return True
        elif frame.index is None or frame.index == 0:
            say = self._session.reporter.say
            what = "film" if frame.film else results.describe(found, self._names)
            say(f"{frame.path}: {what}")
        if self._config.show:
            picture = results.draw(frame, found, self._names)
            return window.show(picture, wait_for_key=frame.film is None)
        return False

    def end(self) -> None:
        """Reports one line about all frames."""
        elapsed_s = max(time.monotonic() - self._started_at, 1e-9)
        speed = f"{self._frames / elapsed_s:.1f} a second"
        where = "" if self._config.nosave and not self._config.save_txt else f"; results in {self._session.run_dir}"
        self._session.reporter.say(f"{self._frames} pictures, {self._boxes} objects, {speed}{where}")


if __name__ == "__main__":
    sys.exit(run())
