"""Read a list of 2.4 million lines; prints seconds of the processor and kilobytes, after and before."""

import re
import sys
import time
from pathlib import Path

import tasks.file_list
from tasks.noisy_labels.filelists import joined, read_listing

FOLDERS, FILES = 16_000, 150


def write_list(path):
    """Names as long as WebVision's: `google/q0001/cS3Rmbg0kYrUKM.jpg 0`."""
    with path.open("w") as file:
        for folder in range(FOLDERS):
            file.writelines(
                f"google/q{folder:05d}/{number:014d}.jpg {folder % 1000}\n" for number in range(FILES)
            )


def peak_kilobytes():
    """Largest resident memory of this program; ru_maxrss would count that of the process that started it."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    path = Path(sys.argv[1])
    write_list(path)
    present = {b"%014d.jpg" % number: False for number in range(FILES)}
    # In place of the disk, on which 2.4 million files would have to lie.
    tasks.file_list._entries = lambda folder: present
    before = peak_kilobytes()
    start = time.process_time()
    files = joined([read_listing(path, path.parent, 1000).files])
    print(time.process_time() - start, peak_kilobytes(), before, len(files))
    assert files.name(FILES) == "google/q00001/00000000000000.jpg" and files.labels[FILES] == 1
    assert sum(a.nbytes for a in (files.packed, files.ends, files.labels)) < 150e6


if __name__ == "__main__":
    main()
