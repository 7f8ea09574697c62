"""`python -m tasks.segmentation {fit,validate,test,predict} …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.errors import one_line_errors
from tasks.preflight import preflight, with_config_of_run

DATASETS = {
    "digit_scenes": "tasks.segmentation.scenes:DigitScenesDataModule",
    "cityscapes": "tasks.segmentation.cityscapes:CityscapesDataModule",
    "ade20k": "tasks.segmentation.ade20k:ADE20KDataModule",
}
"""Name of each data set and where its data module is."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line of semantic segmentation."""
    args = list(sys.argv[1:] if args is None else args)
    with one_line_errors():
        args = with_config_of_run(args)
        if args[:1] == ["predict"]:
            args = [_images(arg) for arg in args]
        preflight("segmentation", args)
        from tasks.cli import run
        from tasks.segmentation.module import SegmentationModule

        run("segmentation", SegmentationModule, DATASETS, args)


def _images(arg: str) -> str:
    """`--images` is short for an option of the data."""
    option, equals, value = arg.partition("=")
    return f"--data.predict_images{equals}{value}" if option == "--images" else arg


if __name__ == "__main__":
    main()
