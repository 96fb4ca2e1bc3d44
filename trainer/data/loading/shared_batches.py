"""Holds room for a few batches of images that processes fill together and one reads."""

from __future__ import annotations

import logging
import mmap

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class SharedBatches:
    """A ring of buffers, each as large as the largest batch; made before the processes are forked.

    The memory is anonymous: it takes nothing of /dev/shm, and the kernel frees it with the last process.
    """

    def __init__(self, count: int, batch_size: int, canvas_hw: tuple[int, int]) -> None:
        self.count = count
        self.batch_size = batch_size
        self._batch_bytes = max(1, batch_size * 3 * canvas_hw[0] * canvas_hw[1])
        self._bytes = np.frombuffer(mmap.mmap(-1, count * self._batch_bytes), np.uint8)
        self.pinned = False

    def planes(self, number: int, row: int, canvas_hw: tuple[int, int]) -> np.ndarray:
        """Returns the room of one image, uint8 (3, height, width), in the buffer of the batch ``number``."""
        planes: np.ndarray = self.images(number, row + 1, canvas_hw)[row]
        return planes

    def images(self, number: int, rows: int, canvas_hw: tuple[int, int]) -> np.ndarray:
        """Returns the room of the first images of a batch, uint8 (rows, 3, height, width)."""
        height, width = canvas_hw
        first = number % self.count * self._batch_bytes
        shape = (rows, 3, height, width)
        images: np.ndarray = np.ndarray(shape, np.uint8, buffer=self._bytes.data, offset=first)
        return images

    def batch(self, number: int, rows: int, canvas_hw: tuple[int, int]) -> Tensor:
        """Returns the same as a tensor that shares the memory."""
        return torch.from_numpy(self.images(number, rows, canvas_hw))

    def pin(self) -> None:
        """Locks the memory's pages once, so that a GPU reads them beside other work; without success, says why.

        Call it after the processes are forked: a driver may keep what is locked from children.
        """
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = runtime.cudaHostRegister(self._bytes.ctypes.data, self._bytes.nbytes, 0)
        self.pinned = int(code) == 0
        if not self.pinned:
            logger.warning("batches are copied once more each: their memory could not be locked (CUDA error %s)", code)
