"""sparsestmax against what it is defined as, the nearest point of the simplex outside a sphere."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from exemplar_norm.sparsestmax import circumradius, sparsemax, sparsestmax
from tests.family import family_oracles

SIZES = pytest.mark.parametrize("K", [2, 3, 4, 5])
SHARES = pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.95, 1.0])


def radius(K, share):
    return torch.tensor(share * circumradius(K), dtype=torch.float64)


def distance(p, z):
    return float((p.detach() - z.detach()).square().sum())


def points(K, count=20):
    """Logits from nearly equal to far apart."""
    return [torch.randn(K, dtype=torch.float64) * 10 ** (-1.5 + 2 * i / count) for i in range(count)]


@SIZES
def test_circumradius_is_the_distance_from_centre_to_corner(K):
    corner = torch.eye(K, dtype=torch.float64)[0]
    assert math.isclose(circumradius(K), float((corner - 1 / K).norm()), rel_tol=1e-15)


@SIZES
def test_sparsemax_is_the_projection_on_the_simplex(K):
    for z in points(K):
        want = family_oracles.sparsemax(z)
        torch.testing.assert_close(sparsemax(z), want, rtol=0, atol=1e-12)  # float64, 200 bisections
        at_zero = sparsestmax(z, radius(K, 0.0))
        torch.testing.assert_close(at_zero, want, rtol=0, atol=1e-12)


@SHARES
@SIZES
def test_nearest_point_of_all_faces(K, share):
    """Where two points are equally near, either will do: compare distances, then the points."""
    for z in points(K):
        r = radius(K, share)
        got, want = sparsestmax(z, r), family_oracles.sparsestmax(z, float(r))
        assert got.min() >= 0 and math.isclose(float(got.sum()), 1, abs_tol=1e-12)
        assert float((got - 1 / K).norm()) >= float(r) - 1e-9
        assert distance(got, z) <= distance(want, z) + 1e-9
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7)  # 1e-15 under the root of the sphere's cut


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_nearest_point_of_a_fine_grid(share):
    """No formula at all: K = 3, every point of the simplex on a grid of 1/400."""
    n = 400
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    grid = torch.tensor(np.stack([i, j, n - i - j], -1)[i + j <= n] / n)
    r = radius(3, share)
    outside = grid[(grid - 1 / 3).norm(dim=1) >= r]
    for z in points(3, 25):
        nearest = (outside - z).square().sum(1).min()
        # The grid's best is at most a cell's diagonal farther than the best point, and never nearer.
        got = math.sqrt(distance(sparsestmax(z, r), z))
        assert got <= math.sqrt(nearest) + 1e-12
        assert got >= math.sqrt(nearest) - 2 * math.sqrt(2) / n


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("K", [3, 5])
def test_no_optimiser_finds_a_nearer_point(K, share):
    r = radius(K, share)
    for z in points(K, 6):
        own, target = distance(sparsestmax(z, r), z), z.numpy()
        for _ in range(4):
            start = np.random.default_rng(K).dirichlet(np.ones(K))
            found = minimize(
                lambda p, target=target: ((p - target) ** 2).sum(),
                start,
                method="SLSQP",
                bounds=[(0, 1)] * K,
                constraints=[
                    {"type": "eq", "fun": lambda p: p.sum() - 1},
                    {"type": "ineq", "fun": lambda p: ((p - 1 / K) ** 2).sum() - float(r) ** 2},
                ],
            )
            if found.success:
                assert own <= found.fun + 1e-5  # SLSQP's own tolerance


@SIZES
def test_circumradius_is_one_hot_at_the_largest(K):
    for z in points(K):
        got = sparsestmax(z, radius(K, 1.0))
        assert torch.equal(got, torch.nn.functional.one_hot(z.argmax(), K).double())


@SHARES
@SIZES
def test_gradient_equals_the_oracle(K, share):
    for z in points(K, 14):
        upstream = torch.randn(K, dtype=torch.float64)
        leaf, own = z.clone().requires_grad_(), z.clone().requires_grad_()
        loss = (family_oracles.sparsestmax(own, float(radius(K, share))) * upstream).sum()
        (want,) = torch.autograd.grad(loss, own, materialize_grads=True)
        (got,) = torch.autograd.grad((sparsestmax(leaf, radius(K, share)) * upstream).sum(), leaf)
        # The direction from the face's centre has a gradient of 1/length: 1e-16 grows with it.
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=1e-7)


@SHARES
@SIZES
def test_gradcheck_away_from_kinks(K, share):
    """Finite differences, where no logit is near the border between two faces."""
    checked = 0
    for z in points(K, 12):
        r = radius(K, share)
        supports = {tuple((sparsestmax(z + 1e-4 * d, r) > 0).tolist()) for d in torch.eye(K).double()}
        supports |= {tuple((sparsestmax(z - 1e-4 * d, r) > 0).tolist()) for d in torch.eye(K).double()}
        inside = float((sparsemax(z) - 1 / K).norm())
        if len(supports) == 1 and abs(inside - float(r)) > 1e-3 and float((z - z.mean()).norm()) > 0.05:
            assert torch.autograd.gradcheck(sparsestmax, (z.requires_grad_(), r), atol=1e-5)
            checked += 1
    assert checked >= 4


@SHARES
def test_one_hot_has_exactly_no_gradient(share):
    z = torch.tensor([0.2, 3.0, -1.0], dtype=torch.float64, requires_grad=True)
    p = sparsestmax(z, radius(3, share))
    (grad,) = torch.autograd.grad((p * torch.randn(3)).sum(), z)
    assert torch.equal(p.detach(), torch.tensor([0.0, 1, 0]).double())
    assert torch.equal(grad, torch.zeros(3).double())


@SHARES
@SIZES
def test_ties_go_to_one_point_of_the_set_with_a_finite_gradient(K, share):
    for z in (torch.zeros(K), torch.cat([torch.ones(2), torch.zeros(K - 2)])):
        leaf = z.double().requires_grad_()
        r = radius(K, share)
        p = sparsestmax(leaf, r)
        (grad,) = torch.autograd.grad((p * torch.arange(K)).sum(), leaf)
        assert grad.isfinite().all()
        assert math.isclose(float(p.detach().sum()), 1, abs_tol=1e-12) and p.min() >= 0
        assert float((p.detach() - 1 / K).norm()) >= float(r) - 1e-9
        assert distance(p, leaf) <= distance(family_oracles.sparsestmax(_nudged(leaf), float(r)), leaf) + 1e-6
        assert p.argmax() == 0 or share == 0


def _nudged(z):
    """Out of the tie by less than the comparison's tolerance."""
    return z.detach() + 1e-9 * torch.arange(len(z), 0, -1)


def test_a_single_entry():
    z = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    p = sparsestmax(z, radius(1, 1.0))
    assert circumradius(1) == 0 and torch.equal(p.detach(), torch.ones(1).double())
    assert torch.autograd.grad(p.sum(), z)[0] == 0


@SHARES
@SIZES
def test_shift_of_all_logits_changes_nothing(K, share):
    for z in points(K, 10):
        r = radius(K, share)
        # 100 costs two digits of the differences.
        torch.testing.assert_close(sparsestmax(z + 100, r), sparsestmax(z, r), rtol=0, atol=1e-9)


@SHARES
@SIZES
def test_float32_follows_float64(K, share):
    for z in points(K, 20):
        z = z.float()
        r = radius(K, share)
        got, want = sparsestmax(z, r.float()), sparsestmax(z.double(), r.float().double())
        assert got.dtype == torch.float32
        # Near equal logits the direction is a quotient of small numbers: 6e-8 over their spread.
        spread = float((z - z.mean()).norm())
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6 + 4e-7 / spread)


@SIZES
def test_sparsity_grows_with_the_radius(K):
    for z in points(K, 20):
        counts = [int((sparsestmax(z, radius(K, s)) > 0).sum()) for s in (0, 0.2, 0.4, 0.6, 0.8, 0.95, 1)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == 1
