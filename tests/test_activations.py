"""The kernels' own tanh and sigmoid: their error against wider arithmetic, and what must hold exactly."""

import functools
import os

import numpy as np
import pytest

from fastrnn import _core

# The largest errors found, in units in the last place of the true value. float32: over all 2^32 inputs
# (FASTRNN_EXHAUSTIVE=1), and the limit is the promise in fastrnn.hpp. float64: over 2^24 random numbers of
# [-2.5, 2.5], where the sample below finds a little less.
#                               tanh    sigmoid
#   float32  baseline           1.9527  1.8602
#   float32  avx2, avx512       1.9324  1.6403
#   float64  baseline           2.0654  1.8828
#   float64  avx2, avx512       2.0298  1.6573
LIMIT = {"float32": 2.0, "float64": 2.5}
WIDER = {"float32": np.float64, "float64": np.longdouble}

FUNCTIONS = {"tanh": _core.tanh, "sigmoid": _core.sigmoid}
functions = pytest.mark.parametrize("name", FUNCTIONS)
needs_longdouble = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="float64 is measured in long double, which is no wider here"
)
dtypes = pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=needs_longdouble)])


def exact(name, x):
    """In the arithmetic that is wider than that of x."""
    x = x.astype(WIDER[str(x.dtype)])
    if name == "tanh":
        return np.tanh(x)
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def ulp_errors(y, true):
    """|y - true| in units in the last place of the true value in y's dtype; 0 where both are NaN."""
    info = np.finfo(y.dtype)
    _, exponent = np.frexp(true)  # |true| = m 2^exponent, m in [1/2, 1)
    ulp = np.ldexp(true.dtype.type(1), np.maximum(exponent - 1, info.minexp) - info.nmant)
    assert np.array_equal(np.isnan(y), np.isnan(true))
    return np.nan_to_num(np.abs(y - true) / ulp, nan=0)


@functools.cache
def sample(dtype):
    """2^22 bit patterns (float64: 2^19) at even distances over all that exist, 2^19 numbers over the range in
    which the functions change, every power of two with its neighbours, and the special values."""
    info = np.finfo(dtype)
    bits, count = {"float32": ("u4", 2**22), "float64": ("u8", 2**19)}[dtype]
    step = 2 ** (8 * np.dtype(bits).itemsize) // count
    everywhere = (
        np.arange(count, dtype=bits) * np.dtype(bits).type(step) + np.dtype(bits).type(step // 3)
    ).view(dtype)
    in_range = np.linspace(-45, 45, 2**19, dtype=dtype)
    powers = np.ldexp(np.ones(1, dtype), np.arange(info.minexp - info.nmant, info.maxexp))
    edges = np.concatenate(
        [powers, np.nextafter(powers, np.inf, dtype=dtype), np.nextafter(powers, 0, dtype=dtype)]
    )
    others = np.array([0, info.max, info.smallest_normal, info.smallest_subnormal, np.inf, np.nan], dtype)
    return np.concatenate([everywhere, in_range, edges, -edges, others, -others])


@functools.cache
@np.errstate(all="ignore")
def exact_of_sample(name, dtype):
    return exact(name, sample(dtype))


@functions
@dtypes
@np.errstate(invalid="ignore")
def test_error_is_at_most_the_stated_number_of_ulp(isa, name, dtype):
    x = sample(dtype)
    errors = ulp_errors(FUNCTIONS[name](x), exact_of_sample(name, dtype))
    worst = np.argmax(errors)
    assert errors[worst] <= LIMIT[dtype], f"{name}({x[worst]!r}) is off by {errors[worst]:.4f} ulp"


@pytest.mark.skipif(
    os.environ.get("FASTRNN_EXHAUSTIVE") != "1", reason="takes minutes; set FASTRNN_EXHAUSTIVE=1"
)
@functions
@np.errstate(invalid="ignore", under="ignore")
def test_error_over_all_float32_is_at_most_the_stated_number_of_ulp(isa, name, capsys):
    tqdm = pytest.importorskip("tqdm", reason="shows its progress with tqdm, which is not installed").tqdm
    size, largest = 2**22, 0.0
    with capsys.disabled(), tqdm(range(0, 2**32, size), desc=f"{isa} {name}") as progress:
        for first in progress:
            x = (np.arange(size, dtype="u4") + np.uint32(first)).view("float32")
            largest = max(largest, ulp_errors(FUNCTIONS[name](x), exact(name, x)).max())
            progress.set_postfix_str(f"{largest:.4f} ulp")
    assert largest <= LIMIT["float32"]


# ---- Exactly


@functions
def test_special_values(isa, dtype, name):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e4, -1e4], dtype)
    expected = {
        "tanh": [0.0, -0.0, 1, -1, np.nan, np.nan, 1, -1],
        "sigmoid": [0.5, 0.5, 1, 0, np.nan, np.nan, 1, 0],
    }[name]
    y = FUNCTIONS[name](x)
    np.testing.assert_array_equal(y, np.array(expected, dtype))
    number = ~np.isnan(y)
    np.testing.assert_array_equal(np.signbit(y[number]), np.signbit(np.array(expected)[number]))


def test_tanh_of_a_denormal_is_that_denormal(isa, dtype):
    x = np.arange(-1000, 1001).astype(dtype) * np.finfo(dtype).smallest_subnormal
    np.testing.assert_array_equal(_core.tanh(x), x)


def test_tanh_is_odd_bit_by_bit(isa, dtype):
    x = sample(dtype)
    x = x[~np.isnan(x)]
    np.testing.assert_array_equal(_core.tanh(-x), -_core.tanh(x))


def test_sigmoid_of_x_and_of_minus_x_add_to_one(isa, dtype):
    x = sample(dtype)
    x = x[~np.isnan(x)]
    assert np.abs(_core.sigmoid(x) + _core.sigmoid(-x) - 1).max() <= 2 * np.finfo(dtype).eps


@functions
def test_values_stay_within_the_range_of_the_function(isa, dtype, name):
    y = FUNCTIONS[name](sample(dtype))
    y = y[~np.isnan(y)]
    assert y.min() == {"tanh": -1, "sigmoid": 0}[name] and y.max() == 1


@functions
def test_a_larger_argument_never_gives_a_value_more_than_one_ulp_smaller(isa, dtype, name):
    x = sample(dtype)
    starts = np.array([1e-6, 1e-3, 0.1, 0.3, 0.5, 0.9, 1, 1.1, 2, 4, 8, 20, 80], dtype)
    bits = f"u{starts.itemsize}"
    runs = [
        (s.view(bits) + np.arange(2**14, dtype=bits)).view(dtype) for s in [*starts, *-starts]
    ]  # no number left out
    for numbers in [x[~np.isnan(x)], *runs]:
        y = FUNCTIONS[name](np.sort(numbers))
        assert np.all(y[:-1] - y[1:] <= np.spacing(np.abs(y[:-1])))


@functions
def test_a_value_does_not_depend_on_its_place_in_the_array(isa, dtype, name):
    x = np.linspace(-9, 9, 67, dtype=dtype)
    whole = FUNCTIONS[name](x)
    for size in range(len(x) + 1):
        np.testing.assert_array_equal(FUNCTIONS[name](x[:size]), whole[:size])
        np.testing.assert_array_equal(FUNCTIONS[name](x[size:].copy()), whole[size:])


@functions
def test_the_shape_stays_and_the_argument_is_not_written(isa, dtype, name):
    for shape in [(), (0,), (3,), (2, 3, 4)]:
        x = np.full(shape, 0.25, dtype)
        y = FUNCTIONS[name](x)
        assert y.shape == shape and y.dtype == dtype and not np.shares_memory(x, y)
        assert (x == 0.25).all()


@functions
@pytest.mark.parametrize(
    "x", [np.zeros(2, int), np.zeros(2, ">f4"), np.zeros(2, "float16"), [1.0], 1.0, None], ids=repr
)
def test_anything_but_native_floats_is_refused(name, x):
    with pytest.raises(TypeError, match=rf"^{name}\(\): incompatible function arguments"):
        FUNCTIONS[name](x)
