"""The forward-mode rules against PyTorch's own and against central differences in float64."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from onesteptrain.utility.forward_mode import FewerPasses

CHOICES = list(itertools.product([False, True], repeat=3))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def derivative(function, values, changes, *, ours: bool):
    """Value and derivative of a function; a change of None means that the argument stands still."""
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        given = [
            value if change is None else forward_ad.make_dual(value, change)
            for value, change in zip(values, changes, strict=True)
        ]
        if ours:
            with FewerPasses():
                return forward_ad.unpack_dual(function(*given))
        return forward_ad.unpack_dual(function(*given))


def alike(function, values, moving):
    """With the derivative moving in some arguments only."""
    changes = [
        random(*value.shape, seed=50 + k) if moves else None
        for k, (value, moves) in enumerate(zip(values, moving, strict=True))
    ]
    found, wanted = (derivative(function, values, changes, ours=ours) for ours in (True, False))
    torch.testing.assert_close(found.primal, wanted.primal, rtol=1e-12, atol=1e-13)  # float64, other order of sums
    if any(moving):
        torch.testing.assert_close(found.tangent, wanted.tangent, rtol=1e-12, atol=1e-12)
    else:
        assert found.tangent is None


@pytest.mark.parametrize("moving", CHOICES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_linear(moving, shape):
    alike(functional.linear, [random(*shape), random(4, 5, seed=1), random(4, seed=2)], moving)


@pytest.mark.parametrize("moving", CHOICES[:4:2])
def test_linear_without_a_bias_on_rows_that_do_not_lie_together(moving):
    turned = random(5, 3, 2).permute(2, 1, 0)
    alike(lambda x, w: functional.linear(x, w), [turned, random(4, 5, seed=1)], (True, *moving[:1]))
    alike(lambda x, w: functional.linear(x, w), [turned, random(4, 5, seed=1)], (moving[1], True))


SEEN = torch.ones(4, 6, dtype=torch.bool).tril(2)


@pytest.mark.parametrize("moving", CHOICES)
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": SEEN},
        {"attn_mask": torch.where(SEEN, 0.0, -torch.inf).double()},
        {"attn_mask": random(2, 1, 4, 6, seed=9)},
    ],
)
def test_attention(moving, named):
    shapes = [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 5)]
    values = [random(*shape, seed=k) for k, shape in enumerate(shapes)]
    alike(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **named), values, moving)


@pytest.mark.parametrize("moving", CHOICES)
@pytest.mark.parametrize("named", [{}, {"is_causal": True}, {"attn_mask": random(2, 6, 4, 6, seed=9)}])
def test_heads_that_share_keys(moving, named):
    """Values of another width than keys, as in models that keep keys and values in a few numbers."""
    values = [random(2, 6, 4, 5), random(2, 2, 6, 5, seed=1), random(2, 2, 6, 3, seed=2)]
    alike(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **named), values, moving)


def test_keys_and_values_with_other_numbers_of_heads_are_refused():
    values = [random(2, heads, 4, 5) for heads in (6, 1, 2)]
    attend = functools.partial(functional.scaled_dot_product_attention, enable_gqa=True)
    with pytest.raises(NotImplementedError, match="1 heads of keys and 2 of values"):
        derivative(attend, values, values, ours=True)


@pytest.mark.parametrize("moving", CHOICES)
def test_attention_of_several_queries_to_the_same_keys(moving):
    values = [random(2, 3, 4, 5), random(1, 3, 6, 5, seed=1), random(1, 3, 6, 5, seed=2)]
    alike(functional.scaled_dot_product_attention, values, moving)


def test_a_query_that_sees_nothing_makes_no_nan():
    seen = SEEN.clone()
    seen[1] = False
    values = [random(1, 1, length, 5, seed=length) for length in (4, 6, 6)]
    changes = [random(*value.shape, seed=7) for value in values]
    found = derivative(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=seen), values, changes, ours=True
    )
    assert found.primal.isfinite().all()
    assert found.tangent.isfinite().all()


@pytest.mark.parametrize("moving", CHOICES[:4])
def test_products(moving):
    values = [random(3, 4), random(4, seed=1), random(3, 4, seed=2)]
    alike(lambda a, b, c: a * b * c * 2.0 + torch.mul(a, c).mul(b) + b * a, values, moving)


@pytest.mark.parametrize("moving", CHOICES[:4])
def test_products_of_a_tensor_that_spreads_over_another(moving):
    values = [random(3, 4), random(3, 1, seed=1), random(2, 3, 4, seed=2)]
    alike(lambda a, b, c: b * a + a * b * c + c.mT.mul(a.mT).mT, values, moving)


@pytest.mark.parametrize("moving", CHOICES[:4])
def test_sums_with_numbers_and_with_tensors(moving):
    values = [random(3, 4), random(4, seed=1), random(3, 4, seed=2)]
    alike(lambda a, b, c: (a + 1e-3) * torch.add(b, 2, alpha=3) + c.add(b, alpha=2) + (1 + c), values, moving)


def test_what_is_changed_in_place_was_not_shared():
    values, changes = [random(3, 4), random(3, 4, seed=1)], [random(3, 4, seed=2), random(3, 4, seed=3)]
    found, wanted = (derivative(lambda a, b: (a + 1).mul_(b) * a, values, changes, ours=ours) for ours in (True, False))
    torch.testing.assert_close(found.tangent, wanted.tangent, rtol=1e-12, atol=1e-12)  # float64, other order of sums


@pytest.mark.parametrize("function", [torch.add, torch.mul])
def test_results_are_written_where_it_is_asked_for(function):
    one, other, place = random(3), random(3, seed=1), random(3, seed=2)
    with torch.no_grad(), FewerPasses():
        function(one, other, out=place)
    torch.testing.assert_close(place, function(one, other), rtol=0, atol=0)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("exponent", [2, 2.0, 3, -0.5, torch.tensor(2.0)])
def test_powers(exponent, moving):
    alike(lambda x: x.pow(exponent) + torch.pow(x, exponent) * x**exponent, [random(3, 4).abs()], (moving,))


def test_half_precision_is_widened_inside_attention():
    values = [random(1, 2, 6, 8, seed=k) for k in range(3)]
    changes = [random(1, 2, 6, 8, seed=10 + k) for k in range(3)]
    narrow = [[one.bfloat16() for one in tensors] for tensors in (values, changes)]
    wide = [[one.double() for one in tensors] for tensors in narrow]
    found = derivative(functional.scaled_dot_product_attention, *narrow, ours=True)
    wanted = derivative(functional.scaled_dot_product_attention, *wide, ours=False)
    assert found.tangent.dtype == torch.bfloat16
    # nothing but the result is rounded: half a unit in the last of 8 bits, and float32 inside
    torch.testing.assert_close(found.tangent.double(), wanted.tangent, rtol=2**-8, atol=1e-6)


def test_a_central_difference_agrees():
    values = [random(1, 2, 4, 5, seed=k) for k in range(3)]
    changes = [random(1, 2, 4, 5, seed=10 + k) for k in range(3)]
    found = derivative(functional.scaled_dot_product_attention, values, changes, ours=True)
    ends = [
        functional.scaled_dot_product_attention(*(v + e * c for v, c in zip(values, changes, strict=True)))
        for e in (1e-5, -1e-5)
    ]
    # O(e^2), and round-off over e
    torch.testing.assert_close(found.tangent, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)
