"""`python -m tasks.noisy_labels {fit,validate,test,predict} …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.errors import one_line_errors
from tasks.preflight import preflight, with_config_of_run

DATASETS = {
    "digits": "tasks.noisy_labels.data:NoisyDigits",
    "cifar10": "tasks.noisy_labels.data:NoisyCIFAR10",
    "cifar100": "tasks.noisy_labels.data:NoisyCIFAR100",
    "imagenet": "tasks.noisy_labels.data:NoisyImageNet",
    "folder": "tasks.noisy_labels.data:NoisyImageFolder",
    "fashion": "tasks.noisy_labels.data:NoisyFashion",
    "webvision": "tasks.noisy_labels.webvision:WebVisionDataModule",
}
"""Name of each data set and where its data module is."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line of learning with noisy labels."""
    args = list(sys.argv[1:] if args is None else args)
    with one_line_errors():
        args = with_config_of_run(args)
        preflight("noisy_labels", args)
        from tasks.cli import run
        from tasks.noisy_labels.module import NoisyLabelsModule

        run("noisy_labels", NoisyLabelsModule, DATASETS, args)


if __name__ == "__main__":
    main()
