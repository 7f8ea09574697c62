"""Image files of every kind become the right RGB pixels, broken ones are named, the crop is torchvision's."""

import io
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.photographs import photograph
from tasks import images
from tasks.images import RandomCropFlip, UnreadableImage, read_image


def picture(width=67, height=45, seed=0):
    return photograph(np.random.default_rng(seed), width, height)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def levels(path):
    """(H, W, 3) levels from read_image, with its type and layout checked."""
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.stride(0) == 1
    return image.permute(1, 2, 0).numpy()


def test_lossless_colours_are_kept(tmp_path):
    for name in ("a.png", "a.bmp", "a.ppm", "a.tif"):
        assert np.array_equal(levels(saved(tmp_path, Image.fromarray(picture()), name)), picture())
    webp = saved(tmp_path, Image.fromarray(picture()), "a.webp", lossless=True)
    assert np.array_equal(levels(webp), picture())


def test_grey_palette_and_transparent_images(tmp_path):
    colour, grey = picture(), picture()[..., 0]
    assert np.array_equal(levels(saved(tmp_path, Image.fromarray(grey), "l.png")), np.dstack([grey] * 3))
    bits = Image.fromarray(grey).convert("1")
    assert np.array_equal(levels(saved(tmp_path, bits, "1.png"))[..., 2], np.asarray(bits) * 255)

    # Transparency is dropped: the colour beneath counts, at whatever opacity.
    alpha = np.linspace(0, 255, grey.size).reshape(grey.shape).astype(np.uint8)
    rgba = saved(tmp_path, Image.fromarray(np.dstack([colour, alpha])), "rgba.png")
    assert np.array_equal(levels(rgba), colour)
    la = saved(tmp_path, Image.fromarray(np.dstack([grey, alpha])), "la.png")
    assert np.array_equal(levels(la), np.dstack([grey] * 3))

    palette = np.array([[250, 0, 10], [0, 200, 30], [5, 6, 7]], np.uint8)
    index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    indexed = Image.fromarray(index)
    indexed.putpalette(palette.tobytes())
    for number, transparency in enumerate((None, 1, bytes([0, 128, 255]))):
        extra = {} if transparency is None else {"transparency": transparency}
        path = saved(tmp_path, indexed, f"p{number}.png", **extra)
        assert np.array_equal(levels(path), palette[index])


def test_16_bit_levels_are_scaled(tmp_path):
    # 257 · 255 = 65535; 128 and 129 lie on either side of half a level (128.5).
    deep = np.array([[0, 128, 129, 257], [32896, 65279, 65407, 65535]], np.uint16)
    want = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])
    for name in ("i16.png", "i16.tif"):
        assert np.array_equal(levels(saved(tmp_path, Image.fromarray(deep), name))[..., 1], want)


def test_floating_point_levels_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((3, 3), np.float32)), "f.tif")
    with pytest.raises(UnreadableImage, match=r"f\.tif: floating-point levels"):
        read_image(path)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=str)
def test_jpeg_is_the_picture(tmp_path, options):
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[60:180:61j, 40:200:83j], 120), -1).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(smooth), "a.JPEG", quality=95, **options)
    # Quality 95 leaves quantisation steps of at most 2–5 on the lowest frequencies of a smooth picture.
    assert np.abs(levels(path).astype(int) - smooth).max() <= 4


def test_cmyk_jpegs(tmp_path):
    # Cyan, magenta, yellow and black inks: red is (1 − C)(1 − K).
    inks = np.zeros((16, 64, 4), np.uint8)
    for column, ink in enumerate(([200, 0, 0, 0], [0, 200, 0, 0], [0, 0, 200, 0], [0, 0, 0, 200])):
        inks[:, 16 * column : 16 * (column + 1)] = ink
    path = saved(tmp_path, Image.fromarray(inks, "CMYK"), "cmyk.JPEG", quality=100)
    assert b"Adobe" in path.read_bytes()  # the marker that says: stored inverted
    centres = levels(path)[8, 8::16]
    want = [[55, 255, 255], [255, 55, 255], [255, 255, 55], [55, 55, 55]]
    # Quality 100 rounds to whole levels, and the inks are rounded once more.
    assert np.abs(centres.astype(int) - want).max() <= 2


def test_both_decoders_give_the_same_pixels(tmp_path, monkeypatch):
    files = [
        saved(tmp_path, Image.fromarray(picture(101, 77, seed)), f"{seed}.JPEG", quality=90, **options)
        for seed, options in enumerate([{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
    ]
    files.append(saved(tmp_path, Image.fromarray(picture()[..., 0]), "grey.JPEG"))
    if images._jpeg_decoder() is None:
        pytest.skip("this torchvision has no JPEG decoder: there is only PIL's")
    used = []
    decode = images._fast_jpeg
    monkeypatch.setattr(images, "_fast_jpeg", lambda data: used.append(1) or decode(data))
    fast = [levels(path) for path in files]
    assert len(used) == len(files)
    monkeypatch.setattr(images, "_fast_jpeg", lambda data: None)
    for quick, path in zip(fast, files, strict=True):
        # Releases of libjpeg differ by the rounding of the inverse transform and by the filter that enlarges
        # the colour planes: a level or two of 255 (none for the versions pinned here).
        assert np.abs(quick.astype(int) - levels(path)).max() <= 2


@pytest.mark.parametrize("name", ["e.JPEG", "e.png"])
def test_exif_orientation(tmp_path, name):
    blocks = np.zeros((32, 48, 3), np.uint8)
    blocks[:16, :24] = 255  # white in the upper left corner as stored
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for orientation, (row, column) in corner.items():
        notes = Image.Exif()
        notes[0x0112] = orientation
        upright = levels(saved(tmp_path, Image.fromarray(blocks), name, exif=notes))
        assert upright.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
        # A quarter is white, one corner of the four; JPEG rings by a few levels beside the edge.
        white = [(r, c) for r in (0, -1) for c in (0, -1) if upright[r, c].min() > 240]
        assert white == [(row, column)]


def test_broken_camera_notes_do_no_harm(tmp_path):
    good = Image.fromarray(picture())
    # A little-endian header, then one entry whose value lies far beyond the end.
    notes = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 5, 9, 10**6)
    path = saved(tmp_path, good, "notes.JPEG", exif=notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(path).shape == (45, 67, 3)


def jpeg_bytes():
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def png_bytes():
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"this is no picture\n", "no image of a known format"),
    "zeros": (lambda: bytes(5000), "no image of a known format"),
    "half": (lambda: jpeg_bytes()[: len(jpeg_bytes()) // 2], "truncated"),
    "nearly_whole": (lambda: jpeg_bytes()[:-2], "truncated"),
    "half_png": (lambda: png_bytes()[: len(png_bytes()) // 2], "truncated|broken"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(tmp_path, kind):
    content, reason = BROKEN[kind]
    path = tmp_path / f"{kind}.JPEG"
    path.write_bytes(content())
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UnreadableImage, match=r"gone\.JPEG: No such file"):
        read_image(tmp_path / "gone.JPEG")
    with pytest.raises(UnreadableImage, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("share", [1.5, 3], ids=["warned of", "refused"])
def test_decompression_bombs(tmp_path, monkeypatch, share):
    path = saved(tmp_path, Image.fromarray(picture()), "bomb.JPEG")
    # PIL warns beyond the limit and refuses beyond twice the limit: neither is an image of a data set.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(67 * 45 / share))
    with pytest.raises(UnreadableImage, match=r"bomb\.JPEG: .*decompression bomb"):
        read_image(path)


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.JPEG", "empty file")))
    assert isinstance(error, OSError)
    assert (error.path, error.reason, str(error)) == ("a/b.JPEG", "empty file", "a/b.JPEG: empty file")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_draws_and_gives_what_torchvision_does(interpolation):
    image = torch.from_numpy(picture(200, 150)).permute(2, 0, 1)
    ours = RandomCropFlip(64, interpolation)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(64, interpolation=v2.InterpolationMode(interpolation), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        got, after = ours(image), torch.rand(1)
        torch.manual_seed(seed)
        want, after_theirs = theirs(image), torch.rand(1)
        # The same kernel on a copy; without AVX2 torchvision resizes in float32 and rounds otherwise.
        assert (got.int() - want.int()).abs().max() <= 1
        assert torch.equal(after, after_theirs)  # as many draws


def test_crop_agrees_with_pil_in_the_mean():
    image = picture(200, 150)
    torch.manual_seed(3)
    ours = RandomCropFlip(64, flip=1.0)
    got = ours(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    torch.manual_seed(3)
    box = ours.box.make_params([Image.fromarray(image)])
    left, top, width, height = (box[key] for key in ("left", "top", "width", "height"))
    part = Image.fromarray(image).crop((left, top, left + width, top + height))
    want = np.asarray(part.resize((64, 64), Image.Resampling.BILINEAR))[:, ::-1]
    # Both round to whole levels between the two directions.
    assert np.abs(got.astype(int) - want).max() <= 1
    assert "size=(64, 64)" in repr(ours) and "flip=1.0" in repr(ours)
