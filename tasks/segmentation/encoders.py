"""Start an encoder from the weights of the classification network that it was cut from."""

from __future__ import annotations

from torch import nn

from tasks.errors import UserError
from tasks.models import Norm, NormOptions
from tasks.networks import Architecture, build_native, network_names
from tasks.pretrained import Convert, load_pretrained
from tasks.weight_files import read_weights

_HEADS = ("fc.", "classifier.")
_IMAGENET_CLASSES = 1000


def load_encoder(
    encoder: nn.Module,
    name: str,
    norm: Norm,
    norm_options: NormOptions | None,
    weights: str,
    convert: Convert,
) -> None:
    """Load a classification network's weights into an encoder, which is converted on the way.

    Weights of the native network keep what they compute as far as `convert_norm` can; those of a converted
    one must have the same normalizer. The classifier is dropped.

    Args:
        encoder: An encoder of segmentation_models_pytorch with its own normalizers; changed in place.
        name: Its name, which is also torchvision's for the classification network.
        norm: Normalizer of the encoder.
        norm_options: Options of that normalizer.
        weights: A name of torchvision's weights, or a file.
        convert: Conversion to that normalizer.

    Raises:
        UserError: There is no such classification network, or the weights do not fit it.
    """
    if name not in network_names():
        raise UserError(
            f"model.encoder_weights: expected an encoder with the name of a network of torchvision, such as "
            f"resnet50, got {name}"
        )
    try:
        made_with = read_weights(weights, name).made_with
        classes = made_with.num_classes if made_with else _IMAGENET_CLASSES
        options = {**norm_options} if norm_options else None
        architecture = Architecture(name, classes, norm, options)
        classifier = load_pretrained(build_native(name, classes), architecture, weights, convert)
    except UserError as error:
        raise UserError(str(error).replace("model.weights", "model.encoder_weights")) from error
    state = classifier.state_dict()
    convert(encoder, preserve=False)
    own = encoder.state_dict()
    unknown = [key for key in state if key not in own and not key.startswith(_HEADS)]
    missing = [key for key in own if key not in state]
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    if unknown or missing or differing:
        raise UserError(
            f"model.encoder_weights: {weights} does not fit encoder {name}: missing {missing[:5]}, "
            f"unexpected {unknown[:5]}, of another shape {differing[:5]}"
        )
    encoder.load_state_dict({key: state[key] for key in own})
