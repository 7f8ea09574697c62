"""What a classifier's inputs are: names of the classes, and how an image becomes an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError

if TYPE_CHECKING:
    from torchvision.transforms import v2

    from tasks.classification.data import ClassificationDataModule


@dataclass(frozen=True)
class Inputs:
    """Class names and preprocessing, in plain values: a checkpoint holds them.

    Attributes:
        class_names: Name of each class.
        mean: Mean colour that is subtracted, of levels in [0, 1].
        std: Standard deviation that it is divided by.
        resize: [shorter side] or [height, width].
        crop: [height, width] of the centre crop after it, None for none.
        interpolation: How images are resized.
    """

    class_names: list[str]
    mean: list[float]
    std: list[float]
    resize: list[int]
    crop: list[int] | None
    interpolation: str

    @classmethod
    def of(cls, data: ClassificationDataModule) -> Inputs:
        """Read them off the data module.

        Raises:
            ValueError: Its evaluation view has steps other than resizing, cropping and normalising.
        """
        from torchvision.transforms import v2

        resize: v2.Resize | None = None
        crop: list[int] | None = None
        for step in data.image_steps():
            if isinstance(step, v2.Resize):
                resize = step
            elif isinstance(step, v2.CenterCrop):
                crop = list(step.size)
            elif not isinstance(step, v2.ToDtype | v2.Normalize):
                raise ValueError(f"image_steps: expected Resize, CenterCrop and Normalize, got {step}")
        if resize is None:
            raise ValueError("image_steps: expected a Resize, got none")
        return cls(
            class_names=[data.class_name(index) for index in range(data.num_classes)],
            mean=list(data.mean),
            std=list(data.std),
            resize=list(resize.size),
            crop=crop,
            interpolation=v2.InterpolationMode(resize.interpolation).value,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> Inputs:
        """Pick them out of what the file `name` says.

        Raises:
            UserError: It does not say them all.
        """
        keys = [field.name for field in fields(cls)]
        missing = [key for key in keys if key not in config]
        if missing:
            raise UserError(
                f"{name}: expected a checkpoint that names its classes and preprocessing, got none of "
                f"{', '.join(missing)}: train or resume it with this version"
            )
        return cls(**{key: config[key] for key in keys})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        height, width = ((self.crop or self.resize) * 2)[:2]
        return height, width

    def preprocess(self) -> v2.Compose:
        """From an image (PIL, or bytes (3, H, W)) of any size to an input (3, height, width)."""
        import torch
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(self.interpolation)
        return v2.Compose(
            [
                v2.RGB(),  # before ToImage: of the two, PIL's images can have other modes than grey
                v2.ToImage(),
                v2.Resize(self.resize, interpolation=mode, antialias=True),
                v2.CenterCrop(self.crop) if self.crop else v2.Identity(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
                v2.ToPureTensor(),
            ]
        )
