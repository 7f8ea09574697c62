"""Joint augmentation: image and mask move together, and the numbers are those of the recipes."""

import pytest
import torch
from torchvision import tv_tensors

from tasks.segmentation.labels import IGNORE
from tasks.segmentation.transforms import (
    Joint,
    PadTo,
    PhotometricDistortion,
    RandomFit,
    RandomVariedCrop,
    training_steps,
)

MEAN = (0.485, 0.456, 0.406)


def blocks(height, width, cell=8):
    """An image whose three channels all repeat its mask, in blocks that survive resizing."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 19, (height // cell, width // cell), generator=generator, dtype=torch.uint8)
    mask = coarse.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return (10 * mask).expand(3, -1, -1).contiguous(), mask


@pytest.mark.parametrize("seed", range(5))
def test_image_and_mask_stay_together(seed):
    image, mask = blocks(64, 128)
    torch.manual_seed(seed)
    apply = Joint(*training_steps((128, 64), (1.0, 2.0), (48, 48), 0.75, False, MEAN))
    image, mask = apply(image, mask)
    assert image.shape == (3, 48, 48) and mask.shape == (48, 48) and type(mask) is torch.Tensor
    # Bilinear pixels between two blocks are of neither: of a block of 8 pixels or more, those at its edge.
    agree = (image[0].float() / 10).round() == mask
    assert agree.float().mean() > 0.7
    assert set(mask.unique().tolist()) <= {*range(19), IGNORE}


def test_masks_only_take_nearest_neighbours():
    image, mask = blocks(64, 64)
    mask = torch.where(mask < 9, 0, 18).to(torch.uint8)
    for seed in range(5):
        torch.manual_seed(seed)
        resized = RandomFit((64, 64), (0.5, 2.0))(tv_tensors.Image(image), tv_tensors.Mask(mask))[1]
        assert set(resized.unique().tolist()) == {0, 18}


def test_the_frame_bounds_both_sides():
    fit = RandomFit((2048, 512), (1.0, 1.0))
    # 683 × 512 is bounded by the shorter side, 2000 × 300 by the longer one.
    assert fit.make_params([torch.zeros(3, 300, 400)])["size"] == [512, 683]
    assert fit.make_params([torch.zeros(3, 300, 2000)])["size"] == [307, 2048]


def test_scales_cover_the_range():
    torch.manual_seed(0)
    fit = RandomFit((200, 100), (0.5, 2.0))
    heights = [fit.make_params([torch.zeros(3, 50, 100)])["size"][0] for _ in range(500)]
    assert 50 <= min(heights) < 55 and 195 < max(heights) <= 200


def test_a_crop_of_one_class_is_drawn_again():
    """Of 101 boxes of 100 columns only 50 hold 25 % or more of the right half: one draw in two would fail."""
    mask = torch.zeros(1, 200, dtype=torch.uint8)
    mask[:, 150:] = 1
    torch.manual_seed(0)
    crop, plain = RandomVariedCrop((1, 100), 0.75), RandomVariedCrop((1, 100), 1.0)
    image = tv_tensors.Image(torch.zeros(3, 1, 200))

    def share_of_bad(transform):
        shares = [transform(image, tv_tensors.Mask(mask))[1].float().mean().item() for _ in range(300)]
        return sum(not 0.25 < share < 0.75 for share in shares) / len(shares)

    # Ten more draws leave 0.75¹¹ = 4 %; one leaves three quarters.
    assert share_of_bad(crop) < 0.1
    assert share_of_bad(plain) > 0.6


def test_ignored_pixels_do_not_count_towards_the_share():
    crop = RandomVariedCrop((1, 4), 0.75)
    assert crop._is_varied(torch.tensor([[0, 1, IGNORE, IGNORE]], dtype=torch.uint8))
    assert not crop._is_varied(torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8))
    assert not crop._is_varied(torch.tensor([[3, IGNORE, IGNORE, IGNORE]], dtype=torch.uint8))
    assert not crop._is_varied(torch.full((1, 4), IGNORE, dtype=torch.uint8))


def test_padding_is_the_mean_colour_and_ignored():
    image, mask = PadTo((4, 5), MEAN)(
        tv_tensors.Image(torch.zeros(3, 3, 3, dtype=torch.uint8)),
        tv_tensors.Mask(torch.zeros(3, 3, dtype=torch.uint8)),
    )
    assert image.shape == (3, 4, 5) and mask.shape == (4, 5)
    assert image[:, 3, 4].tolist() == [124, 116, 104]
    assert mask[3].tolist() == [IGNORE] * 5 and mask[0].tolist() == [0, 0, 0, IGNORE, IGNORE]


def test_distortion_shifts_scales_and_leaves_the_mask():
    grey = tv_tensors.Image(torch.full((3, 2, 2), 100, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.full((2, 2), 7, dtype=torch.uint8))
    torch.manual_seed(0)
    levels = []
    for _ in range(300):
        image, same = PhotometricDistortion()(grey, mask)
        assert torch.equal(same, mask)
        levels.append(int(image[0, 0, 0]))
    # (100 ± 32) · (0.5 … 1.5) at most; hue and saturation leave grey as it is, up to rounding.
    assert 34 <= min(levels) < 60 and 150 < max(levels) <= 198
    assert 30 < sum(level == 100 for level in levels) < 150  # neither of the two in a quarter of the draws


def test_every_step_of_the_distortion_is_used_half_of_the_time():
    torch.manual_seed(0)
    counts = [len(PhotometricDistortion().make_params([])["steps"]) for _ in range(400)]
    # Four steps of probability ½ each; the mean of 400 draws has a standard deviation of 0.05.
    assert abs(sum(counts) / 400 - 2) < 0.2
