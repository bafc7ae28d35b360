"""The initializers: their distributions, their names, and that they do what Keras' do."""

import functools
import json

import numpy as np
import pytest
from support import assert_close, import_keras

from fastrnn import initializers

# NumPy's remark about how Keras reads PyTorch's tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCALED = [
    "variance_scaling",
    *(f"{who}_{how}" for who in ("glorot", "he", "lecun") for how in ("normal", "uniform")),
]
RANDOM = ["orthogonal", "random_normal", "random_uniform", "truncated_normal", *SCALED]
NAMES = ["constant", "identity", "ones", "zeros", *RANDOM]
SHAPES = [(8, 256), (64, 256), (64, 64), (96, 20), (1, 1), (1, 12), (7, 1)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
names = pytest.mark.parametrize("name", NAMES)


def rng(seed=0):
    return np.random.default_rng(seed)


def camel(name):
    return "".join(word.capitalize() for word in name.split("_"))


# ---- Shapes, dtypes, seeds ----


@names
@shapes
@dtypes
def test_shape_and_dtype_are_those_asked_for(name, shape, dtype):
    array = initializers.get(name)(shape, dtype, rng())
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous


@pytest.mark.parametrize("name", RANDOM)
def test_same_generator_state_gives_the_same_values(name):
    initializer = initializers.get(name)
    np.testing.assert_array_equal(
        initializer((5, 20), "float64", rng(3)), initializer((5, 20), "float64", rng(3))
    )
    assert not np.array_equal(
        initializer((5, 20), "float64", rng(3)), initializer((5, 20), "float64", rng(4))
    )


@pytest.mark.parametrize("name", RANDOM)
def test_two_draws_from_one_generator_differ(name):
    generator, initializer = rng(), initializers.get(name)
    assert not np.array_equal(
        initializer((5, 20), "float64", generator), initializer((5, 20), "float64", generator)
    )


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_the_values_are_fresh(name):
    initializer = initializers.get(name)
    assert not np.array_equal(initializer((5, 20)), initializer((5, 20)))


@pytest.mark.parametrize("name", RANDOM)
def test_float32_values_are_the_rounded_float64_values(name):
    initializer = initializers.get(name)
    np.testing.assert_array_equal(
        initializer((6, 24), "float32", rng(1)), initializer((6, 24), "float64", rng(1)).astype("float32")
    )


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_of_its_own_goes_before_the_generator(name):
    initializer = initializers.get({"class_name": name, "config": {"seed": 7}})
    first = initializers.draw(initializer, (5, 20), "float64", rng(1))
    np.testing.assert_array_equal(first, initializers.draw(initializer, (5, 20), "float64", rng(2)))


# ---- Distributions ----


def test_zeros_and_ones_are_zero_and_one():
    assert not initializers.zeros((3, 4)).any()
    assert (initializers.ones((3, 4)) == 1).all()


@shapes
def test_glorot_uniform_fills_its_interval(shape):
    limit = np.sqrt(6 / sum(shape))
    values = np.concatenate(
        [initializers.glorot_uniform(shape, "float64", rng(s)).ravel() for s in range(200)]
    )
    assert np.abs(values).max() <= limit
    assert np.abs(values).max() > 0.95 * limit
    assert values.min() < 0 < values.max()


def test_glorot_uniform_has_mean_0_and_variance_2_over_the_sum_of_fans():
    values = initializers.glorot_uniform((300, 1000), "float64", rng())
    variance = 2 / 1300
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)
    # The variance of the square of a uniform variable is 4/5 of its squared variance.
    assert abs(values.var() / variance - 1) < 5 * np.sqrt(0.8 / values.size)


def test_glorot_uniform_of_a_vector_takes_its_length_as_both_fans():
    values = initializers.glorot_uniform((10_000,), "float64", rng())
    assert 0.99 * np.sqrt(3 / 10_000) < np.abs(values).max() <= np.sqrt(3 / 10_000)


@pytest.mark.parametrize("shape", [(0, 8), (), (3, 3, 4, 5)], ids=str)
def test_glorot_uniform_takes_any_shape(shape):
    assert initializers.glorot_uniform(shape, "float64", rng()).shape == shape


@shapes
@dtypes
def test_orthogonal_has_orthonormal_rows_or_columns(shape, dtype):
    u = initializers.orthogonal(shape, dtype, rng())
    product = u @ u.T if shape[0] < shape[1] else u.T @ u
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=50 * np.finfo(dtype).eps)


def test_orthogonal_is_multiplied_by_gain():
    whole, half = (initializers.orthogonal((4, 12), "float64", rng(1), gain=g) for g in (1.0, 0.5))
    np.testing.assert_array_equal(half, 0.5 * whole)


def test_orthogonal_takes_the_leading_dimensions_as_rows():
    u = initializers.orthogonal((3, 4, 5), "float64", rng())
    np.testing.assert_array_equal(u.reshape(12, 5), initializers.orthogonal((12, 5), "float64", rng()))


def test_orthogonal_is_as_often_positive_as_negative():
    """QR alone leaves the signs to LAPACK; with sign(diag r) no entry has a preferred sign."""
    firsts = [initializers.orthogonal((4, 4), "float64", rng(s))[0, 0] > 0 for s in range(400)]
    assert 140 < sum(firsts) < 260


def test_orthogonal_of_a_vector_is_refused():
    with pytest.raises(
        ValueError, match=r"^orthogonal: shape must have at least two dimensions, got \(5,\); "
    ):
        initializers.orthogonal((5,), "float32", rng())


# ---- Against Keras ----


@shapes
def test_orthogonal_is_what_keras_makes_of_the_same_normal_matrix(shape, monkeypatch):
    keras = import_keras()
    from keras.src.initializers import random_initializers

    normal = rng(5).standard_normal((max(shape), min(shape)))

    def same_normal(shape, seed=None, dtype=None):
        assert tuple(shape) == normal.shape
        return keras.ops.convert_to_tensor(normal, dtype=dtype)

    monkeypatch.setattr(random_initializers.random, "normal", same_normal)
    expected = keras.ops.convert_to_numpy(keras.initializers.Orthogonal(gain=1.5)(shape, dtype="float64"))
    assert_close(initializers.orthogonal(shape, "float64", rng(5), gain=1.5), expected, rtol=1e-13)


@pytest.mark.parametrize(
    "name, settings",
    [
        *((name, {}) for name in NAMES if name not in ("orthogonal", "constant")),
        ("constant", {"value": 0.25}),
        ("identity", {"gain": 0.5}),
        ("random_normal", {"mean": 1.0, "stddev": 0.5}),
        ("truncated_normal", {"mean": 1.0, "stddev": 0.5}),
        ("random_uniform", {"minval": 1.0, "maxval": 2.0}),
        *(
            ("variance_scaling", {"scale": 0.5, "mode": mode, "distribution": distribution})
            for mode in ("fan_in", "fan_out", "fan_avg")
            for distribution in ("uniform", "normal", "truncated_normal", "untruncated_normal")
        ),
        ("glorot_normal", {"input_axes": [1], "output_axes": [0]}),
    ],
    ids=str,
)
@shapes
def test_values_are_what_keras_makes_of_the_same_random_numbers(name, settings, shape, monkeypatch):
    keras = import_keras()
    from keras.src.initializers import random_initializers

    def same(ours, *arguments):
        def draw(shape, *given, dtype=None, seed=None, **options):
            options |= dict(zip(arguments, given, strict=False))
            return ours(shape, dtype, rng(6), **options)

        return draw

    monkeypatch.setattr(
        random_initializers.random, "uniform", same(initializers.random_uniform, "minval", "maxval")
    )
    monkeypatch.setattr(random_initializers.random, "normal", same(initializers.random_normal))
    monkeypatch.setattr(random_initializers.random, "truncated_normal", same(initializers.truncated_normal))
    config = {"class_name": camel(name), "config": settings}
    expected = keras.ops.convert_to_numpy(keras.initializers.get(config)(shape, dtype="float64"))
    ours = initializers.draw(initializers.get(config), shape, "float64", rng(6))
    assert_close(ours, expected, rtol=1e-15)


@pytest.mark.parametrize("name", ["random_normal", "random_uniform", "truncated_normal"])
def test_random_numbers_have_the_distribution_of_keras(name):
    keras = import_keras()
    theirs = keras.ops.convert_to_numpy(keras.initializers.get(camel(name))((100, 400)))
    ours = initializers.get(name)((100, 400), "float32", rng())
    assert abs(ours.mean()) < 0.002 and abs(theirs.mean()) < 0.002
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03)
    if name != "random_normal":  # which has no end
        assert np.abs(ours).max() <= {"random_uniform": 0.05, "truncated_normal": 2 * 0.05}[name]
        # Keras on PyTorch lets a number in a million beyond its end.
        ends = [np.quantile(np.abs(values), 0.999) for values in (ours, theirs)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-2)


def test_every_name_of_keras_is_known_but_stft():
    import_keras()
    from keras.src.initializers import ALL_OBJECTS_DICT

    for name in ALL_OBJECTS_DICT.keys() - {"Initializer", "initializer", "STFT", "STFTInitializer", "stft"}:
        assert camel(initializers.get(name).__name__) == ALL_OBJECTS_DICT[name].__name__


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"mode": "fan"}, {"distribution": "cauchy"}], ids=str)
def test_variance_scaling_refuses_what_keras_refuses(settings):
    import_keras()
    config = {"class_name": "VarianceScaling", "config": settings}
    with pytest.raises(ValueError, match=r"^variance_scaling: .*; take one of these$"):
        initializers.get(config)((3, 4))


def test_identity_of_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"^identity: shape must have two dimensions, got \(5,\); "):
        initializers.identity((5,))


def test_glorot_uniform_has_the_distribution_of_keras():
    keras = import_keras()
    shape = (100, 400)
    theirs = keras.ops.convert_to_numpy(keras.initializers.GlorotUniform(seed=1)(shape))
    ours = initializers.glorot_uniform(shape, "float32", rng())
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=1e-3)


@names
def test_keras_knows_every_name_and_every_config(name):
    keras = import_keras()
    theirs = keras.initializers.get(initializers.serialize(initializers.get(name)))
    assert type(theirs).__name__ == camel(name)
    # And back: Keras' own config means the same function.
    assert initializers.get(keras.initializers.serialize(theirs)) is initializers.get(name)


def test_keras_reads_a_config_with_settings():
    keras = import_keras()
    config = initializers.serialize(functools.partial(initializers.orthogonal, gain=0.5))
    assert keras.initializers.get(config).gain == 0.5


def test_an_initializer_object_of_keras_is_drawn_by_keras():
    keras = import_keras()
    theirs = keras.initializers.HeNormal(seed=3)
    assert initializers.get(theirs) is theirs
    drawn = initializers.draw(theirs, (4, 8), "float64", rng())
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(theirs((4, 8), dtype="float64")))
    assert initializers.serialize(keras.initializers.Orthogonal(gain=0.5)) == {
        "class_name": "Orthogonal",
        "config": {"gain": 0.5, "seed": None},
    }


# ---- get, serialize, draw ----


@names
def test_get_finds_both_spellings(name):
    function = getattr(initializers, name)
    assert initializers.get(name) is function
    assert initializers.get(camel(name)) is function
    assert initializers.get(function) is function


@pytest.mark.parametrize(
    "alias, name", [("zero", "zeros"), ("one", "ones"), ("OrthogonalInitializer", "orthogonal")]
)
def test_get_finds_the_aliases_of_keras(alias, name):
    assert initializers.get(alias) is getattr(initializers, name)


@pytest.mark.parametrize(
    "settings",
    [None, {}, {"gain": 1.0, "seed": None}, {"input_axes": None}],
    ids=str,
)
def test_settings_at_their_defaults_say_nothing(settings):
    assert initializers.get({"class_name": "Orthogonal", "config": settings}) is initializers.orthogonal


def test_settings_reach_the_function():
    initializer = initializers.get({"class_name": "orthogonal", "config": {"gain": 2.0}})
    np.testing.assert_array_equal(
        initializer((3, 6), "float64", rng()), initializers.orthogonal((3, 6), "float64", rng(), gain=2.0)
    )


@pytest.mark.parametrize(
    "identifier",
    [
        *(n for n in NAMES if n != "constant"),
        {"class_name": "Constant", "config": {"value": 0.0}},
        {"class_name": "Orthogonal", "config": {"gain": 0.5, "seed": 3}},
    ],
    ids=str,
)
def test_serialize_undoes_get_by_way_of_json(identifier):
    written = initializers.serialize(initializers.get(identifier))
    assert written == identifier
    again = initializers.get(json.loads(json.dumps(written)))
    np.testing.assert_array_equal(
        initializers.draw(again, (3, 6), "float64", rng()),
        initializers.draw(initializers.get(identifier), (3, 6), "float64", rng()),
    )


def test_get_makes_an_instance_of_a_class():
    class Twos:
        def __call__(self, shape, dtype=None):
            return np.full(shape, 2, dtype)

    assert isinstance(initializers.get(Twos), Twos)


def test_draw_gives_the_generator_to_those_who_have_a_parameter_for_it():
    def with_rng(shape, dtype, rng):
        return rng

    def without(shape, dtype=None):
        return shape, dtype

    generator = rng()
    assert initializers.draw(with_rng, (2, 3), "float32", generator) is generator
    assert initializers.draw(without, (2, 3), "float32", generator) == ((2, 3), "float32")
    bound = functools.partial(initializers.glorot_uniform, rng=rng(9))
    np.testing.assert_array_equal(
        initializers.draw(bound, (2, 3), "float64", generator),
        initializers.glorot_uniform((2, 3), "float64", rng(9)),
    )


def test_numpy_functions_are_initializers():
    assert initializers.draw(initializers.get(np.ones), (2, 3), "float32", rng()).dtype == "float32"


# ---- Errors ----


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r'^there is no initializer "glorot"; the known ones are "constant", .*'
        r'"variance_scaling", "zeros", and any callable f\(shape, dtype=\.\.\.\) will do$',
    ):
        initializers.get("glorot")


@pytest.mark.parametrize(
    "identifier", [None, 3, [1.0], np.zeros((2, 2))], ids=["None", "int", "list", "array"]
)
def test_other_kinds_are_refused(identifier):
    with pytest.raises(
        TypeError,
        match=r"^an initializer must be a name, a config or a callable .*; the known names are .*zeros",
    ):
        initializers.get(identifier)


@pytest.mark.parametrize("config", [{}, {"class_name": 3}, {"class_name": "Zeros", "config": "x"}], ids=str)
def test_a_config_without_its_parts_is_refused(config):
    with pytest.raises(
        ValueError, match=r"^an initializer's config must have a class_name and a dict config, got \{"
    ):
        initializers.get(config)


def test_an_unknown_setting_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^glorot_uniform: the settings must be among \['input_axes', 'output_axes', 'seed'\], got \['axes'\]; "
        r"leave the others out$",
    ):
        initializers.get({"class_name": "GlorotUniform", "config": {"axes": [0]}})


@pytest.mark.parametrize(
    "own",
    [lambda shape, dtype=None: None, functools.partial(initializers.orthogonal, rng=None)],
    ids=["function", "bound_generator"],
)
def test_what_get_could_not_find_again_is_not_serialized(own):
    with pytest.raises(
        TypeError, match=r"^an initializer of one's own cannot be written into a config, got .*zeros"
    ):
        initializers.serialize(own)
