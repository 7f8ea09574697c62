"""Branches of the CPU passes that only large inputs take, taken by small ones: limits are lowered.

Each pass against the portable one in float64, on the same input.
Legend: N samples, C channels, S positions.
"""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exemplar_norm import passes, passes_cpu

N, ROWS, ROW = 5, 4, 200
PIECES = [2, 2, 1]  # samples, or as many values: N is no multiple of a piece
# (C, S): 13 and 7 positions are f blocks and a rest of one, and as primes they do not fold; 16 are blocks
# alone, and their sums fold; 3 are one block. 600 channels are more than a row takes.
SIZES = [(1, 13), (48, 13), (48, 16), (48, 3), (600, 7)]
LAYOUTS = pytest.mark.parametrize("layout", ["nchw", "nhwc"])
CASES = [
    LAYOUTS,
    pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids="{}".format),
    pytest.mark.parametrize("mean", [0, 500], ids="mean-{}".format),
    pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format),
]
SMALL = pytest.mark.parametrize("small", [True, False], ids=["small-samples", "large-samples"])

SPIED = {
    passes_cpu: ("_row_moments", "_plain_moments", "_image_moments", "_fold", "_batch_norm_reduce",
                 "_affine_uncentred"),
    passes: ("affine", "reduce"),
}  # fmt: skip


def cases(test):
    for mark in CASES:
        test = mark(test)
    return test


@contextmanager
def limits(values, small, rows=ROWS, row=ROW, short=0):
    """Pieces of `values`; yields the parts of the module that run, and each split's values in a piece."""
    ran = SimpleNamespace(parts=Counter(), pieces=[])

    def spied(name, function):
        def run(*args):
            ran.parts[name] += 1
            return function(*args)

        return run

    def pieces(*args, split=passes_cpu._pieces):
        sizes = []
        ran.pieces.append(sizes)
        for piece in split(*args):
            sizes.append(piece[0].numel())
            yield piece

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_SUMMED", "_CHAINED", "_WIDENED", "_PIECE"):
            patch.setattr(passes_cpu, name, values)
        for name, value in {"_SMALL": small, "_ROWS": rows, "_ROW": row, "_SHORT": short}.items():
            patch.setattr(passes_cpu, name, value)
        for module, names in SPIED.items():
            for name in names:
                patch.setattr(module, name, spied(name, getattr(module, name)))
        patch.setattr(passes_cpu, "_pieces", pieces)
        yield ran


def lowered(size, small=True):
    """Limits at which two samples are a piece, and each is a small one or not."""
    values = size[0] * size[1]
    # Sums of two tensors count as small up to twice the limit.
    return limits(2 * values, values if small else (values - 1) // 2)


def is_split(ran, size):
    return ran.pieces[0] == [samples * size[0] * size[1] for samples in PIECES]


def laid_out(x_NCS, layout):
    return x_NCS if layout == "nchw" else x_NCS.transpose(1, 2).contiguous().transpose(1, 2)


def inputs(layout, dtype, mean, shape):
    """What the passes take, of random values; X deviates by 4 around its mean."""
    large = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    x, dy, residual, y = (laid_out(t.to(dtype), layout) for t in (4 * large[0] + mean, *large[1:]))
    wide = torch.promote_types(dtype, torch.float32)
    draw = torch.randn(5, *shape[:2], dtype=wide)
    # A > 0.5, so that |A·m| says by its mean alone whether X has to be centred.
    scale = 0.5 + torch.rand(shape[:2], dtype=wide)
    return SimpleNamespace(
        x=x, dy=dy, residual=residual, y=y, mean=x.to(wide).mean(2), scale=scale, shift=draw[0],
        dy_sum=draw[1], g_mean=draw[2], g_var=draw[3],
    )  # fmt: skip


def named(data, *names):
    return [getattr(data, name) for name in names]


def exact(*tensors):
    """In float64, and channels-first: the portable passes are held elsewhere."""
    return [None if t is None else t.double().contiguous() for t in tensors]


def fresh(x):
    """An output in which every value that is not written shows."""
    return torch.full_like(x, torch.nan)


def check(got, want, size, rounded=0):
    """To 16 roundings at `size`, the largest that a result or a term of it has; 4e-15 of it in float64.

    Results in bfloat16 are rounded once more, by half an eps of themselves and of what else is `rounded`.
    """
    wide = torch.promote_types(got.dtype, torch.float32)
    allowed = 16 * torch.finfo(wide).eps * size
    if got.dtype != wide:
        allowed = allowed + 0.51 * torch.finfo(got.dtype).eps * (want.abs() + rounded)
    error = (got.double() - want).abs()
    assert (error <= allowed).all(), f"error {error.max().item():.2e} at size {float(size):.2e}"


def affine_form(mean):
    return "affine" if mean else "_affine_uncentred"


def check_moments(x, got):
    m, v = passes.moments(*exact(x))
    check(got[0], m, x.abs().max())
    # The native kernels' mean is off by its rounding, and so are the deviations from it.
    check(got[1], v, (v + v.sqrt() * m.abs()).max())


@SMALL
@cases
def test_moments(size, mean, dtype, layout, small):
    x = inputs(layout, dtype, mean, (N, *size)).x
    with lowered(size, small) as ran:
        got = passes_cpu.moments(x)
    check_moments(x, got)
    if x.is_contiguous():
        # In low precision BatchNorm's kernel takes all rows at once.
        assert dtype == torch.bfloat16 or ran.parts == {"_row_moments": len(PIECES)}
    elif small:
        assert ran.parts == {"_plain_moments": len(PIECES)} and is_split(ran, size)
    else:
        blocks = 1 if size[1] <= ROWS or size[1] == 16 else 2
        assert ran.parts["_image_moments"] == blocks and "_plain_moments" not in ran.parts
        assert ran.parts["_fold"] == (0 if size[1] <= ROWS else blocks)


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@cases
def test_affine(size, mean, dtype, layout, with_residual, relu):
    data = inputs(layout, dtype, mean, (N, *size))
    residual = data.residual if with_residual else None
    arguments, out = named(data, "x", "mean", "scale", "shift"), fresh(data.x)
    want = torch.empty(out.shape, dtype=torch.float64)
    passes.affine(*exact(*arguments), want, *exact(residual), relu)
    with lowered(size) as ran:
        passes_cpu.affine(*arguments, out, residual, relu)
    # A sum with the residual may round Y before; |Y| is at most the sum and the residual.
    check(out, want, want.abs().max(), want.abs() + residual.abs() if with_residual else 0)
    assert set(ran.parts) == {affine_form(mean)}
    # One native kernel takes X whole; the centred form has float32 copies of lower precision made.
    if with_residual or relu or (mean and dtype == torch.bfloat16):
        assert is_split(ran, size)


def check_sums(arguments, got):
    """Of (dY, X, m): to the sum of their terms' sizes."""
    dy, x, mean = exact(*arguments)
    terms = passes.reduce(dy.abs(), (x - mean[..., None]).abs(), torch.zeros_like(mean))
    for own, other, size in zip(got, passes.reduce(dy, x, mean), terms, strict=True):
        check(own, other, size.max())


def sums_of(x, small):
    if x.is_contiguous():
        return {"_batch_norm_reduce"}
    return {"reduce"} if small else {"_fold", "_batch_norm_reduce"}


@SMALL
@cases
def test_reduce(size, mean, dtype, layout, small):
    data = inputs(layout, dtype, mean, (N, *size))
    arguments = named(data, "dy", "x", "mean")
    with lowered(size, small) as ran:
        got = passes_cpu.reduce(*arguments)
    check_sums(arguments, got)
    assert set(ran.parts) == sums_of(data.x, small)
    assert "reduce" not in ran.parts or is_split(ran, size)


@pytest.mark.parametrize("short", [13, 14], ids=["long-rows", "short-rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids="{}".format)
def test_short_rows_of_low_precision_are_copied(dtype, short):
    data = inputs("nchw", dtype, 3, (N, 48, 13))
    arguments = named(data, "dy", "x", "mean")
    with limits(2 * 48 * 13, 0, short=short) as ran:
        got, sums = passes_cpu.moments(data.x), passes_cpu.reduce(*arguments)
    check_moments(data.x, got)
    check_sums(arguments, sums)
    # Native kernels take all rows at once; float32 copies are made of two samples at a time.
    copied = short > 13
    assert ran.parts["_row_moments"] == len(PIECES) * copied
    assert ran.parts["_batch_norm_reduce"] == (len(PIECES) if copied else 1)


def clear_of_zero(data):
    """Move X where Y is so near to 0 that its sign were a matter of rounding."""
    y = torch.empty(data.x.shape, dtype=torch.float64)
    passes.affine(*exact(*named(data, "x", "mean", "scale", "shift")), y)
    data.x += 4 * (y.abs() < 0.01)


@SMALL
@pytest.mark.parametrize("with_output", [False, True], ids=["from-x", "from-y"])
@cases
def test_reduce_relu(size, mean, dtype, layout, with_output, small):
    data = inputs(layout, dtype, mean, (N, *size))
    clear_of_zero(data)
    arguments = [*named(data, "dy", "x", "mean", "scale", "shift"), data.y if with_output else None]
    out, want = fresh(data.x), torch.empty(data.x.shape, dtype=torch.float64)
    passes.reduce_relu(*exact(*arguments), want)
    with lowered(size, small) as ran:
        got = passes_cpu.reduce_relu(*arguments, out)
    assert torch.equal(out.double(), want)  # values of dY, and zeros
    check_sums([want, data.x, data.mean], got)
    form = set() if with_output else {affine_form(mean)}
    assert set(ran.parts) == sums_of(data.x, small) | form
    assert is_split(ran, size)


@cases
def test_input_grad(size, mean, dtype, layout):
    data = inputs(layout, dtype, mean, (N, *size))
    arguments = named(data, "dy", "x", "mean", "scale", "dy_sum", "g_mean", "g_var")
    out, want = fresh(data.x), torch.empty(data.x.shape, dtype=torch.float64)
    passes.input_grad(*exact(*arguments), want)
    with lowered(size) as ran:
        passes_cpu.input_grad(*arguments, out)
    check(out, want, want.abs().max())
    assert set(ran.parts) == {affine_form(mean)}
    assert is_split(ran, size)


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 40))
LIMITS = st.fixed_dictionaries(
    {
        "values": st.integers(1, 400),
        "small": st.integers(0, 300),
        "rows": st.integers(1, 8),
        "row": st.integers(1, 64),
    }
)


@LAYOUTS
@given(shape=SHAPES, chosen=LIMITS, mean=st.sampled_from([0, 500]))
def test_any_shape_and_limits(layout, shape, chosen, mean):
    data = inputs(layout, torch.float64, mean, shape)
    sums, y, dx = named(data, "dy", "x", "mean"), fresh(data.x), fresh(data.x)
    coefficients = named(data, "x", "mean", "scale", "shift")
    gradients = named(data, "scale", "dy_sum", "g_mean", "g_var")
    with limits(**chosen):
        moments, reduced = passes_cpu.moments(data.x), passes_cpu.reduce(*sums)
        passes_cpu.affine(*coefficients, y, data.residual, True)
        passes_cpu.input_grad(*sums, *gradients, dx)
    check_moments(data.x, moments)
    check_sums(sums, reduced)
    want_y, want_dx = torch.empty(2, *shape, dtype=torch.float64)
    passes.affine(*exact(*coefficients), want_y, *exact(data.residual), True)
    passes.input_grad(*exact(*sums, *gradients), want_dx)
    # Where ReLU leaves nothing, its input was of the residual's size at least.
    check(y, want_y, want_y.abs().max() + data.residual.abs().max())
    check(dx, want_dx, want_dx.abs().max())
