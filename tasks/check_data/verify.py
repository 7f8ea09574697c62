"""Decode every file of a tree in full, on all cores."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import NamedTuple

from tasks.check_data.trees import Fault, Tree
from tasks.errors import UserError
from tasks.images import UnreadableImage, open_image, orientation, pixels, read_bytes

_CHUNK = 32  # files a worker takes at once: about 50 ms, so that an interrupt is answered soon
_WAITING = 4  # chunks a worker: enough that none idles, few enough that memory does not grow with the tree
DIGEST_BYTES = 16


class Verdict(NamedTuple):
    """What one file holds.

    Attributes:
        digest: Hash of its bytes, empty for a broken file.
        kind: Format and mode, "JPEG RGB"; "turned" behind it where an EXIF orientation is applied.
        width: Columns as stored.
        height: Rows as stored.
        reason: Why it cannot be read; empty for a sound file.
    """

    digest: bytes
    kind: str
    width: int
    height: int
    reason: str


def verify_file(path: str, fault: Fault | None = None) -> Verdict:
    """Decode one file in full, and look at what belongs to it."""
    try:
        data = read_bytes(path)
        image = open_image(data, path)
        kind = f"{image.format} {image.mode}" + (" turned" if orientation(image) != 1 else "")
        size = image.size
        # What belongs to an image is of its pixels as they are stored.
        decoded = pixels(image, data, path, upright=fault is None)
    except UnreadableImage as error:
        return Verdict(b"", "", 0, 0, error.reason)
    if fault and (reason := fault(path, decoded)):
        return Verdict(b"", "", 0, 0, reason)
    return Verdict(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest(), kind, *size, "")


def verify(
    tree: Tree, workers: int, advance: Callable[[int], None] = lambda count: None
) -> Generator[tuple[int, int, Verdict], None, None]:
    """Decode every file of a tree.

    Args:
        tree: The files.
        workers: Processes.
        advance: Called with the number of files done since the last call.

    Yields:
        Number of the part, number of the file in it, and its verdict, in any order.

    Raises:
        UserError: A worker was killed, for instance by a system that is out of memory.
    """
    # A server forks the workers: forking this process could copy a lock that the progress bar's thread holds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chunks = _chunks(tree)
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        running: dict[Future[list[Verdict]], _Chunk] = {}
        while True:
            for chunk in islice(chunks, _WAITING * workers - len(running)):
                running[pool.submit(_verify_chunk, chunk.paths, tree.parts[chunk.part].fault)] = chunk
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                verdicts = future.result()
                advance(len(verdicts))
                yield from ((chunk.part, chunk.start + i, one) for i, one in enumerate(verdicts))
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed near {chunk.paths[0]}: out of memory? (--workers {workers})"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Chunk(NamedTuple):
    part: int
    start: int
    paths: list[str]


def _chunks(tree: Tree) -> Iterator[_Chunk]:
    for number, part in enumerate(tree.parts):
        for start in range(0, len(part.files), _CHUNK):
            stop = min(start + _CHUNK, len(part.files))
            yield _Chunk(number, start, [str(part.files.path(row)) for row in range(start, stop)])


def _verify_chunk(paths: list[str], fault: Fault | None) -> list[Verdict]:
    return [verify_file(path, fault) for path in paths]


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
