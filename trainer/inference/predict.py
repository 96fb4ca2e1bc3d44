"""Finds objects in pictures and films (``python -m trainer.inference.predict --weights FILE --run-dir DIR SOURCE``)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.protocol import (
    DEFAULT_IMAGE_SIZE,
    OUTPUT_ON_STDERR,
    OUTPUT_VARIABLE,
    PREDICT_BATCH_SIZE,
    PREDICT_CONFIDENCE,
    PREDICT_IOU,
    PREDICT_MAX_DETECTIONS,
    RunFiles,
)
from trainer.runtime.process_guard import guard_worker

if TYPE_CHECKING:
    import numpy as np

    from trainer.inference.detector import Detector
    from trainer.inference.results import ResultWriter
    from trainer.inference.sources import Frame
    from trainer.runtime.session import Session

_UNWRITTEN = 16
"""Frames that may wait for their pictures to be written."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and predict; the exit code."""
    options = parse(arguments)
    if options.json:
        os.environ[OUTPUT_VARIABLE] = OUTPUT_ON_STDERR  # stdout is for the lines of JSON
    guard_worker(RunFiles(options.run_dir).logs.folder)
    # Only now: importing torch takes seconds.
    from trainer.runtime.session import run_entry

    return run_entry(lambda session: predict(session, options), options.run_dir)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; defaults are YOLOv5's."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.inference.predict", description="Find objects in pictures."
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="picture, film, folder or pattern")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True, help="where results go")
    parser.add_argument("--imgsz", type=int, help=f"image side; the one trained on, else {DEFAULT_IMAGE_SIZE}")
    parser.add_argument("--batch", type=int, default=PREDICT_BATCH_SIZE)
    parser.add_argument("--conf", type=float, default=PREDICT_CONFIDENCE)
    parser.add_argument("--iou", type=float, default=PREDICT_IOU, help="of non-maximum suppression")
    parser.add_argument("--max-det", type=int, default=PREDICT_MAX_DETECTIONS)
    parser.add_argument("--classes", help="only these: indices or names, such as 0,2 or person,car")
    parser.add_argument("--half", action="store_true", help="float16 on a GPU")
    parser.add_argument("--save-txt", action="store_true")
    parser.add_argument("--save-conf", action="store_true")
    parser.add_argument("--save-crop", action="store_true")
    parser.add_argument("--nosave", action="store_true", help="draw no pictures")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--json", action="store_true", help="a line of JSON a picture on stdout")
    return parser.parse_args(arguments)


def predict(session: Session, options: argparse.Namespace) -> None:
    """Look at every frame and keep what was found."""
    from trainer.inference.detector import load_detector
    from trainer.inference.results import ResultWriter, Wanted
    from trainer.inference.sources import find_media, read_frames
    from trainer.inference.window import open_window

    media = find_media(options.sources)
    if options.show:
        open_window()
    detector = load_detector(options.weights, session.device, half=options.half)
    classes = chosen_classes(options.classes, detector.names)
    image_size = detector.image_size(options.imgsz, session.reporter)
    unreadable: list[Path] = []

    def on_unreadable(path: Path, why: str) -> None:
        unreadable.append(path)
        session.reporter.warn(f"{path}: {why}")

    frames = read_frames(media, image_size=image_size, stride=detector.stride, on_unreadable=on_unreadable)
    wanted = Wanted(
        pictures=not options.nosave,
        labels=options.save_txt,
        confidences=options.save_conf,
        crops=options.save_crop,
    )
    detector.warm_up(image_size)
    teller = Teller(session, options, detector.names)
    with Keeper(ResultWriter(session.run_dir, detector.names, wanted)) as keeper:
        for frame, found in detect(session, options, detector, classes, frames):
            keeper.keep(frame, found)
            if teller.tell(frame, found):
                break
    teller.end()
    if len(unreadable) == len(media):
        from trainer.errors import DataError

        raise DataError("no file could be read", seen=", ".join(map(str, unreadable[:5])), expected="pictures or films")


def chosen_classes(text: str | None, names: Sequence[str]) -> list[int] | None:
    """Class indices from '0,2' or 'person,car'; None for all. Raises ConfigError for one that the model lacks."""
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
                expected=f"of {len(names)}: {shown}" + ", ..." * (len(names) > 20),
            )
    return chosen


def detect(
    session: Session,
    options: argparse.Namespace,
    detector: Detector,
    classes: list[int] | None,
    frames: Iterator[Frame],
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Each frame with its detections (n, 6) in pixels of its file, in the order of the frames."""
    import numpy as np
    import torch

    from trainer.inference.sources import batches_of_one_size
    from trainer.model.postprocess import non_max_suppression

    done: dict[int, tuple[Frame, np.ndarray]] = {}
    upcoming = 0
    session.heartbeat.beat("val")
    for batch in batches_of_one_size(frames, options.batch):
        pixels = np.stack([frame.canvas for frame in batch])
        images = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2)))
        suppressed = non_max_suppression(
            detector(images),
            confidence_threshold=options.conf,
            iou_threshold=options.iou,
            classes=classes,
            max_detections=options.max_det,
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
    """Hands results to a thread that draws and writes them in order, and waits where it falls behind."""

    def __init__(self, writer: ResultWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1)
        self._unwritten: deque[Future[None]] = deque()

    def __enter__(self) -> Keeper:
        return self

    def keep(self, frame: Frame, found: np.ndarray) -> None:
        """Write one frame's results soon. Raises what writing an earlier one raised."""
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
    """Says what was found as it is found: lines of JSON, lines for people, a window."""

    def __init__(self, session: Session, options: argparse.Namespace, names: tuple[str, ...]) -> None:
        self._session = session
        self._options = options
        self._names = names
        self._frames = 0
        self._boxes = 0
        self._started_at = time.monotonic()

    def tell(self, frame: Frame, found: np.ndarray) -> bool:
        """Say one frame's results; True when nobody wants more."""
        from trainer.inference import results, window

        self._frames += 1
        self._boxes += len(found)
        if self._options.json:
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
        if self._options.show:
            picture = results.draw(frame, found, self._names)
            return window.show(picture, wait_for_key=frame.film is None)
        return False

    def end(self) -> None:
        """One line about all of it."""
        elapsed_s = max(time.monotonic() - self._started_at, 1e-9)
        speed = f"{self._frames / elapsed_s:.1f} a second"
        where = "" if self._options.nosave and not self._options.save_txt else f"; results in {self._session.run_dir}"
        self._session.reporter.say(f"{self._frames} pictures, {self._boxes} objects, {speed}{where}")


if __name__ == "__main__":
    sys.exit(run())
