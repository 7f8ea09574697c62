"""Segmentation networks by name, from segmentation_models_pytorch, with the normalizer of choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from tasks.errors import UserError, close_matches
from tasks.models import Norm, NormOptions, convert_network
from tasks.segmentation.encoders import load_encoder

Network = Literal["deeplabv3", "deeplabv3plus", "psp", "upernet", "unet", "fpn", "digits_unet"]

_AUX_FEATURE = 4  # the encoder's input is its feature 0, the stem's output 1, that of stage 3 is 4


@dataclass(frozen=True)
class _Recipe:
    """How one architecture is built.

    Attributes:
        model: Its class in segmentation_models_pytorch.
        divisor: What height and width of its input have to be multiples of.
        options: Arguments of the class.
        encoder: The only encoder that it goes with; None for any.
    """

    model: str
    divisor: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None


_RECIPES: dict[str, _Recipe] = {
    "deeplabv3": _Recipe("DeepLabV3", options={"encoder_output_stride": 8}),
    "deeplabv3plus": _Recipe("DeepLabV3Plus", 8, {"encoder_output_stride": 8}),
    # smp.PSPNet by default ends at stage 2, with half of the encoder.
    "psp": _Recipe("PSPNet", options={"encoder_depth": 5, "output_stride": 8}),
    "upernet": _Recipe("UPerNet"),
    "unet": _Recipe("Unet"),
    "fpn": _Recipe("FPN", 32),
    "digits_unet": _Recipe(
        "Unet", options={"encoder_depth": 3, "decoder_channels": (48, 32, 16)}, encoder="tu-resnet10t"
    ),
}


class Outputs(NamedTuple):
    """What a network with an auxiliary head gives in training: logits (N, C, H, W) of both heads."""

    logits: Tensor
    aux: Tensor


class Segmenter(nn.Module):
    """Encoder, decoder and head; in training an auxiliary head on stage 3 as well, where there is one.

    Images of any size: where the decoder needs multiples of `divisor`, the right and the bottom are padded
    with 0, the mean colour, and the logits cropped.

    Args:
        model: A network of segmentation_models_pytorch, whose parts are taken.
        divisor: What height and width have to be multiples of inside.
        aux: The auxiliary head.
    """

    def __init__(self, model: nn.Module, divisor: int = 1, aux: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = cast(nn.Module, model.encoder), cast(nn.Module, model.decoder)
        # Without the head's upsampling, which knows no size but multiples of its factor.
        self.head = cast(nn.Sequential, model.segmentation_head)[0]
        self.divisor, self.aux = divisor, aux

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Logits (N, C, H, W) of images (N, 3, H, W)."""
        height, width = images.shape[-2:]
        down, right = -height % self.divisor, -width % self.divisor
        padded = F.pad(images, (0, right, 0, down)) if down or right else images
        features = self.encoder(padded)
        logits = self._full_size(self.head(self.decoder(features)), padded)[..., :height, :width]
        if self.aux is None or not self.training:
            return logits
        aux = self._full_size(self.aux(features[_AUX_FEATURE]), padded)[..., :height, :width]
        return Outputs(logits, aux)

    def _full_size(self, logits: Tensor, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")


def build_segmenter(
    network: Network,
    encoder: str,
    num_classes: int,
    norm: Norm = "bn",
    norm_options: NormOptions | None = None,
    *,
    aux: bool = False,
    encoder_weights: str | None = None,
) -> Segmenter:
    """Build a network and convert its normalizers.

    Args:
        network: Decoder, with the output stride that goes with it: 8 for DeepLab and PSP.
        encoder: Name of an encoder of segmentation_models_pytorch; "digits_unet" has its own.
        num_classes: Number of classes.
        norm: Normalizer; with "bn" and no options the network stays as it was built.
        norm_options: Options of that normalizer.
        aux: Whether there is an auxiliary head for training.
        encoder_weights: Weights of the classification network of the encoder's name: a name of torchvision's
            or a file, such as a checkpoint of tasks.classification. None starts from random ones.

    Raises:
        UserError: A name is unknown, an option does not belong to the normalizer or is out of its range, or
            the weights do not fit.
    """
    if network not in _RECIPES:
        hint = close_matches(network, _RECIPES)
        raise UserError(f"model.network: expected one of {', '.join(_RECIPES)}, got {network!r}{hint}")
    recipe = _RECIPES[network]
    model: Any = _build(recipe, encoder, num_classes)
    head = None
    if aux:
        channels = model.encoder.out_channels
        if len(channels) <= _AUX_FEATURE:
            raise UserError(f"model.aux_weight: expected 0 for {network}, whose encoder has no stage 3")
        head = fcn_head(channels[_AUX_FEATURE], num_classes)
    segmenter = Segmenter(model, recipe.divisor, head)

    convert = partial(convert_network, norm=norm, norm_options=norm_options)
    if encoder_weights is not None:
        load_encoder(segmenter.encoder, encoder, norm, norm_options, encoder_weights, convert)
    convert(segmenter, preserve=False)
    return segmenter


def fcn_head(channels: int, num_classes: int, dropout: float = 0.1) -> nn.Sequential:
    """Auxiliary head of mmsegmentation's recipes: 3×3 convolution to a quarter of the channels, 1×1."""
    hidden = channels // 4
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(hidden, num_classes, 1),
    )


def _build(recipe: _Recipe, encoder: str, num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    name = recipe.encoder or encoder
    known = smp.encoders.get_encoder_names()
    if name not in known and not _is_timm(name):
        raise UserError(
            f"model.encoder: unknown encoder {name!r}{close_matches(name, known)}: expected one of "
            "segmentation_models_pytorch, or tu-<name> for one of timm"
        )
    try:
        # Weights are never fetched here: without a network that takes half a minute to fail.
        model = getattr(smp, recipe.model)(name, encoder_weights=None, classes=num_classes, **recipe.options)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"model.encoder: {name} does not go with {recipe.model}: {error}") from error
    return cast(nn.Module, model)


def _is_timm(name: str) -> bool:
    import timm

    return name.startswith("tu-") and name.removeprefix("tu-") in timm.list_models()
