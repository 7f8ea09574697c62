"""Image files as RGB pixels, whatever kind of file a data set holds, and the training crop at its fastest."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

# Bitmaps alone: other readers of PIL run programs (EPS starts Ghostscript), which no image of a data set may.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class UnreadableImage(OSError):
    """A file that is missing or holds no whole image.

    Args:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: str | PathLike[str], upright: bool = True) -> Tensor:
    """Pixels of an image file as uint8 (3, H, W), in the memory order of channels last.

    Args:
        path: The file.
        upright: Turn what a camera noted to be turned.

    Raises:
        UnreadableImage: If the file is missing or holds no whole image.
    """
    data = read_bytes(path)
    return pixels(open_image(data, path), data, path, upright)


def read_bytes(path: str | PathLike[str]) -> bytes:
    """Content of a file.

    Raises:
        UnreadableImage: If it is missing, no file or empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from None
    if not data:
        raise UnreadableImage(path, "empty file")
    return data


def open_image(data: bytes, path: str | PathLike[str]) -> Image.Image:
    """The image in a file's content, with its header read: format, mode and size, no pixels yet.

    Raises:
        UnreadableImage: If it is of no known format, or so large that it looks like an attack.
    """
    with reading(path):
        return Image.open(io.BytesIO(data), formats=FORMATS)


@contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever a broken file makes PIL raise into UnreadableImage.

    Raises:
        UnreadableImage: Decoding failed.
    """
    try:
        with warnings.catch_warnings():
            # Broken notes in a file are common and harmless; an image beyond PIL's limit is refused.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(path, "no image of a known format") from None
    # PIL lets out whatever its parsers meet: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def pixels(image: Image.Image, data: bytes, path: str | PathLike[str], upright: bool = True) -> Tensor:
    """Every pixel of an opened image in RGB, as uint8 (3, H, W) in the order of channels last.

    Grey, palette and CMYK images are converted, transparency is dropped (as torchvision's loaders do), 16-bit
    levels are scaled to 8 bits.

    Args:
        image: What `open_image` gave.
        data: Content of its file.
        path: The file, for the message.
        upright: Apply the orientation that a camera noted.

    Raises:
        UnreadableImage: If the file is cut short or broken, or its levels are floating-point numbers.
    """
    with reading(path):
        turned = upright and orientation(image) != 1
        if image.format == "JPEG" and image.mode in ("RGB", "L") and not turned:
            decoded = _fast_jpeg(data)
            if decoded is not None:
                return decoded
        image.load()
        if turned:
            image = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 2 to 8; 1 (upright) where there is none or the notes cannot be parsed."""
    if image.format == "JPEG" and "exif" not in image.info:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            noted = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken note (PIL leaks many kinds) says nothing about pixels that are sound
        return 1
    return noted if 2 <= noted <= 8 else 1


class RandomCropFlip:
    """uint8 (3, H, W) ↦ uint8 (3, size, size): a random box, resized with antialiasing and perhaps mirrored.

    Draws the same numbers and gives the same pixels as `v2.RandomResizedCrop` and `v2.RandomHorizontalFlip`,
    without the time that they spend on inputs of other kinds.

    Args:
        size: Height and width of the result.
        interpolation: "bilinear" or "bicubic".
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width / height.
        flip: Probability of mirroring.
    """

    def __init__(
        self,
        size: int,
        interpolation: str = "bilinear",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        from torchvision.transforms import v2

        self.flip = flip
        self.box = v2.RandomResizedCrop(size, scale, ratio, v2.InterpolationMode(interpolation))

    def __call__(self, image: Tensor) -> Tensor:
        """The crop, in the memory order of channels last."""
        box = self.box.make_params([image])
        rows = slice(box["top"], box["top"] + box["height"])
        columns = slice(box["left"], box["left"] + box["width"])
        # The resizing kernel would copy a part of an image too, more slowly.
        part = image[None, :, rows, columns].contiguous(memory_format=torch.channels_last)
        cropped = interpolate(part, self.box.size, mode=self.box.interpolation.value, antialias=True)[0]
        return cropped.flip(-1) if torch.rand(1) < self.flip else cropped

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.box.extra_repr()}, flip={self.flip})"


def _rgb(image: Image.Image) -> Image.Image:
    """A decoded image in RGB."""
    if image.mode == "F":
        raise ValueError("floating-point levels have no 8-bit form")
    if image.mode.startswith("I"):
        # PIL would clip at 255. 257 · 255 = 65535, so that white stays white.
        levels = np.rint(np.clip(np.asarray(image, np.float64), 0, 65535) / 257)
        image = Image.fromarray(levels.astype(np.uint8))
    return image.convert("RGB")


def _fast_jpeg(data: bytes) -> Tensor | None:
    """A JPEG's pixels straight into a tensor, None where the decoder is missing or objects to the file."""
    decoder = _jpeg_decoder()
    if decoder is None:
        return None
    try:
        return decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None  # PIL says what is wrong


@cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """Torchvision's decoder, beneath its functions: they warn that a later release will be without it."""
    import torchvision.io

    if not hasattr(torch.ops.image, "decode_jpeg"):
        return None
    rgb, as_stored = torchvision.io.ImageReadMode.RGB.value, False
    return lambda data: torch.ops.image.decode_jpeg(data, rgb, as_stored)
