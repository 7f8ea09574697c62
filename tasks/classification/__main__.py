"""`python -m tasks.classification {fit,validate,test,predict,export} …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.errors import one_line_errors
from tasks.preflight import preflight, with_config_of_run

DATASETS = {
    "digits": "tasks.classification.digits:DigitsDataModule",
    "imagenet": "tasks.classification.imagenet:ImageNetDataModule",
    "folder": "tasks.classification.folders:ImageFolderDataModule",
    "cifar10": "tasks.classification.cifar:CIFAR10DataModule",
    "cifar100": "tasks.classification.cifar:CIFAR100DataModule",
    "fashion": "tasks.classification.fashion:FashionDataModule",
    "digits_control": "tasks.classification.control:DigitsControlDataModule",
}
"""Name of each data set and where its data module is."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line of image classification."""
    args = list(sys.argv[1:] if args is None else args)
    with one_line_errors():
        if args[:1] == ["export"]:
            from tasks.classification import export

            return export.main(args[1:])
        if args[:1] == ["predict"] and any(arg.partition("=")[0] == "--images" for arg in args):
            from tasks.classification import predict_images

            return predict_images.main(args[1:])
        args = with_config_of_run(args)
        preflight("classification", args, more=("export",))
        from tasks.classification.module import ClassificationModule
        from tasks.cli import run

        run("classification", ClassificationModule, DATASETS, args)


if __name__ == "__main__":
    main()
