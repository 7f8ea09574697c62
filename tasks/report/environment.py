"""What a run ran on: versions, revision of the code, hardware."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "timm",
    "segmentation-models-pytorch",
    "numpy",
    "jsonargparse",
    "wandb",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    import torch

    # Unlike the package's, torch's own version names the build.
    found = {"Python": platform.python_version(), "torch": str(torch.__version__)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def revision(folder: Path = _REPOSITORY) -> str | None:
    """Commit of the code and whether files differ from it; None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is None:
        return commit
    return f"{commit} (with uncommitted changes)" if changes else f"{commit} (clean)"


def _git(folder: Path, *args: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no checkout, or a file system that does not answer
        return None
    return done.stdout.strip()


def hardware() -> dict[str, str]:
    """Processor, cores, graphics cards and operating system."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"CPU": _cpu_model(), "CPU cores": f"{usable} usable of {os.cpu_count()}"}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["GPU"] = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
        found["CUDA"] = str(torch.version.cuda)
    return {**found, "system": f"{platform.system()} {platform.release()}"}


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Largest resident memory of this process in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_gpu_memory() -> int | None:
    """Largest memory that tensors took on this process's GPU, in bytes; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
