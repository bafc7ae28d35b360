"""fastrnn.torch beside torch.nn on the same weights and data: results, gradients, and all that PyTorch does with modules."""

import copy
import io
import pickle
import shutil
import warnings
from contextlib import contextmanager

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support import assert_close

import fastrnn

torch = pytest.importorskip("torch", reason="tests fastrnn.torch, and PyTorch is not installed")
import fastrnn.torch  # noqa: E402
from fastrnn.torch import _ops  # noqa: E402

nn = torch.nn
NAMES = ("RNN", "LSTM", "GRU")
CELLS = {"RNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru", "LSTM_PROJECTED": "lstm_projected"}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5}
I, H = 3, 5


@contextmanager
def kernels_ran(name, forward, backward=0):
    """Within it, the kernels of this layer run exactly so often, and no others."""
    before = fastrnn.kernel_calls()
    yield
    after = fastrnn.kernel_calls()
    new = {cell: {k: n - before[cell][k] for k, n in after[cell].items()} for cell in after}
    expected = {"forward": forward, "backward": backward}
    assert {cell: calls for cell, calls in new.items() if any(calls.values())} == (
        {CELLS[name]: expected} if forward or backward else {}
    )


def pair(name, *args, **kwargs):
    """torch.nn's module and fastrnn's, with the same weights."""
    theirs, ours = (getattr(m, name)(*args, **kwargs) for m in (nn, fastrnn.torch))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def results(module, x, hx, batch_first=False, lengths=None, seed=None):
    """Outputs, states and all gradients of a module, by name; `hx`: a list of states or None."""
    if seed is not None:
        torch.manual_seed(seed)
    module.zero_grad()
    x = x.clone().requires_grad_()
    hx = None if hx is None else [h.clone().requires_grad_() for h in hx]
    given_states = None if hx is None else tuple(hx) if len(hx) == 2 else hx[0]
    if lengths is None:
        outputs = module(x, given_states)
    else:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        outputs = module(packed, given_states)
    if isinstance(module, nn.RNNBase):
        y, states = outputs
        found = {"y": y.data if lengths is not None else y}
    else:
        found, states = {}, outputs
    found |= {f"state {i}": s for i, s in enumerate(as_tuple(states))}
    generator = torch.Generator().manual_seed(1)
    sum(
        (f * torch.randn(f.shape, generator=generator, dtype=f.dtype)).sum() for f in found.values()
    ).backward()
    found["x"] = x.grad
    found |= {f"hx {i}": h.grad for i, h in enumerate(hx or [])}
    return found | {n: p.grad for n, p in module.named_parameters()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name].detach(), value.detach(), TOLERANCE[value.dtype], name)


options = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "bidirectional": st.booleans(),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
    }
)


# ---- Results


@pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)  # torch.nn's
@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    options=options,
    relu=st.booleans(),
    batched=st.booleans(),
    packed=st.booleans(),
    with_states=st.booleans(),
    drops=st.booleans(),
    training=st.booleans(),
    projects=st.booleans(),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_results_and_gradients_are_those_of_torch_nn(
    name, options, relu, batched, packed, with_states, drops, training, projects, lengths
):
    torch.manual_seed(2)
    options = dict(options)
    layers, directions = options["num_layers"], 1 + options["bidirectional"]
    if relu and name == "RNN":
        options["nonlinearity"] = "relu"
    widths, cell = [H, H], name
    if projects and name == "LSTM":
        options["proj_size"], widths, cell = 2, [2, H], "LSTM_PROJECTED"
    if drops and layers > 1:
        options["dropout"] = 0.4
    theirs, ours = (m.train(training) for m in pair(name, I, H, **options))
    B, T = len(lengths), max(lengths)
    shape = (B, T, I) if options["batch_first"] else (T, B, I)
    states_shape = (layers * directions, B)
    if not (batched or packed):
        shape, states_shape = (T, I), (layers * directions,)
    x = torch.randn(shape, dtype=options["dtype"])
    hx = None
    if with_states:
        hx = [torch.randn(*states_shape, w, dtype=options["dtype"]) for w in widths[: 1 + (name == "LSTM")]]
    call = {"batch_first": options["batch_first"], "lengths": lengths if packed else None, "seed": 3}
    expected = results(theirs, x, hx, **call)
    with kernels_ran(cell, layers * directions, layers * directions):
        actual = results(ours, x, hx, **call)
    assert_same(actual, expected)


@given(
    name=st.sampled_from(NAMES),
    bias=st.booleans(),
    batched=st.booleans(),
    with_states=st.booleans(),
    relu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_cells_are_those_of_torch_nn(name, bias, batched, with_states, relu, dtype):
    torch.manual_seed(2)
    options = {"nonlinearity": "relu"} if relu and name == "RNN" else {}
    theirs, ours = pair(name + "Cell", I, H, bias=bias, dtype=dtype, **options)
    shape = (4,) if batched else ()
    x = torch.randn(*shape, I, dtype=dtype)
    hx = [torch.randn(*shape, H, dtype=dtype) for _ in range(1 + (name == "LSTM"))] if with_states else None
    expected = results(theirs, x, hx)
    with kernels_ran(name, 1, 1):
        actual = results(ours, x, hx)
    assert_same(actual, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_inference_gives_the_same_bits_as_training_and_runs_forward_alone(name, batch_first, guard):
    _, ours = pair(name, I, H, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 6, I)
    y, states = ours(x)
    with guard(), kernels_ran(name, 4):
        again, states_again = ours(x)
    assert not again.requires_grad
    assert torch.equal(y, again)
    assert all(map(torch.equal, as_tuple(states), as_tuple(states_again)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_states", [False, True])
def test_cells_infer_what_they_compute_in_training(name, with_states):
    cell = getattr(fastrnn.torch, name + "Cell")(I, H)
    x, hx = torch.randn(4, I), tuple(torch.randn(4, H) for _ in range(1 + (name == "LSTM")))
    args = (x, hx if name == "LSTM" else hx[0]) if with_states else (x,)
    expected = as_tuple(cell(*args))
    with torch.no_grad(), kernels_ran(name, 1):
        actual = as_tuple(cell(*args))
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_are_contiguous(name, batch_first, bidirectional):
    module = getattr(fastrnn.torch, name)(I, H, 2, batch_first=batch_first, bidirectional=bidirectional)
    assert module(torch.randn(4, 6, I))[0].is_contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_no_copy_is_made_of_input_weights_and_output(name, monkeypatch):
    seen = []
    run = _ops._kernels
    monkeypatch.setattr(_ops, "_kernels", lambda w, x, *a: seen.append((w.arrays, x, a[-1])) or run(w, x, *a))
    module = getattr(fastrnn.torch, name)(I, H)
    x = torch.randn(6, 4, I)
    with torch.no_grad():
        y, _ = module(x)
    ((arrays, x_seen, out),) = seen
    assert np.shares_memory(x_seen, x.numpy()) and np.shares_memory(out, y.numpy())
    if name != "GRU":
        assert np.shares_memory(arrays[0], module.weight_ih_l0.detach().numpy())
        assert np.shares_memory(arrays[1], module.weight_hh_l0.detach().numpy())


def test_strided_input_and_gradients_are_read_right():
    theirs, ours = pair("LSTM", I, H, dtype=torch.float64)
    x = torch.randn(4, 2 * I, 6, dtype=torch.float64).transpose(0, 2)[:, ::2]  # [6, I, 4]
    x = x.transpose(1, 2)
    assert_same(results(ours, x, None), results(theirs, x, None))
    for module in (theirs, ours):
        module.zero_grad()
        module(x)[0].sum().backward()  # the gradient of y has strides 0
    assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_weights_changed_behind_the_module_are_seen(name):
    theirs, ours = pair(name, I, H)
    x = torch.randn(6, 4, I)
    with torch.no_grad():
        ours(x)
        for module in (theirs, ours):
            for p in module.parameters():
                p.data.mul_(0.5)  # does not count as a change in place
        assert_close(ours(x)[0], theirs(x)[0], 3e-5)


def test_weights_changed_before_backward_are_refused():
    module = fastrnn.torch.GRU(I, H)
    y, _ = module(torch.randn(6, 4, I))
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cell", [False, True])
def test_storages_that_get_other_memory_before_backward_are_read_there(name, cell):
    theirs, ours = pair(name + "Cell" * cell, I, H)
    x = torch.randn(*(() if cell else (6,)), 4, I)
    for module in (theirs, ours):
        y = as_tuple(module(x))[0]
        held = []
        for p in module.parameters():
            value, storage = p.detach().clone(), p.untyped_storage()
            held.append(storage)
            size = storage.nbytes()
            storage.resize_(0)  # as FullyShardedDataParallel does
            held.append(torch.full((1000,), torch.nan))  # what may come to lie there
            storage.resize_(size)
            p.data.copy_(value)
        y.sum().backward()
    for p, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, expected.grad, 3e-5)


@pytest.mark.parametrize("dtype, shape", [(torch.float16, (4 * H, H)), (torch.float32, (2 * H, H))], ids=str)
def test_other_values_at_the_same_address_are_not_read_as_those_of_forward(dtype, shape):
    module = fastrnn.torch.LSTM(I, H)
    weight = module.weight_hh_l0
    buffer = weight.detach().clone().flatten()
    weight.data = buffer.view(4 * H, H)
    y, _ = module(torch.randn(6, 4, I))
    weight.data = buffer.view(dtype)[: shape[0] * shape[1]].view(shape)
    assert weight.data_ptr() == buffer.data_ptr()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"float32|recurrent_kernel"):
        y.sum().backward()


def test_a_pytorch_whose_tensors_have_no_c_functions_serves_too(run_python):
    code = """
    import torch
    del torch.Tensor.__dlpack_c_exchange_api__
    import fastrnn.torch
    from fastrnn.torch import _recorded
    assert not _recorded.TENSORS_ARE_READ
    for name in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"):
        theirs, ours = (getattr(m, name)(3, 5) for m in (torch.nn, fastrnn.torch))
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(4, 3) if name.endswith("Cell") else torch.randn(6, 4, 3)
        gradients = []
        for module in (theirs, ours):
            y = module(x)
            while isinstance(y, tuple):
                y = y[0]
            gradients.append([y, *torch.autograd.grad(y.sum(), module.parameters())])
            with torch.no_grad():
                module(x)
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    print("same")
    """
    assert run_python(code) == "same\n"


# ---- Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(6, 4, I + 1)), "input_size. Expected 3, got 4"),
        (lambda m: m(torch.zeros(6)), "2 or 3 dimensions, got 1"),
        (lambda m: m(torch.zeros(0, 4, I)), "larger than 0"),
        (
            lambda m: m(torch.zeros(6, 4, I), torch.zeros(1, 3, H)),
            r"hx must have shape \(1, 4, 5\) \(layers \* directions, batch, units\), got \(1, 3, 5\); leave hx out",
        ),
        (lambda m: m(torch.zeros(6, 4, I), torch.zeros(4, H)), "as many dimensions as input, 3, got 2"),
        (lambda m: m(torch.zeros(6, 4, I).double()), "float32 like the weights, got torch.float64"),
        (lambda m: m(torch.zeros(6, 4, I), torch.zeros(1, 4, H).double()), "hx must be torch.float32"),
        (
            lambda m: m(torch.zeros(6, 4, I), (torch.zeros(1, 4, H),) * 2),
            r"one tensor h_0, got a tuple of 2 \(Tensor, ",
        ),
        (
            lambda m: m(torch.zeros(6, 4, I), np.zeros((1, 4, H))),
            "one tensor h_0, got a ndarray; pass h_0 itself",
        ),
        (lambda m: m(torch.zeros(6, 4, I), torch.zeros(1, 4, H).to_sparse()), "hx must be a dense tensor"),
        (lambda m: m(torch.zeros(6, 4, I, dtype=torch.int64)), "got torch.int64"),
        (lambda m: m.half()(torch.zeros(6, 4, I).half()), "float32 or float64, got torch.float16"),
        (lambda m: m.bfloat16()(torch.zeros(6, 4, I).bfloat16()), "got torch.bfloat16"),
        (lambda m: m(torch.zeros(6, 4, I).to_sparse()), "must be a dense tensor"),
        (lambda m: m.to("meta")(torch.zeros(6, 4, I, device="meta")[..., :2]), "Expected 3, got 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_where_and_what(call, message):
    before = fastrnn.kernel_calls()
    with pytest.raises((RuntimeError, ValueError, TypeError), match="fastrnn.torch.GRU: .*" + message):
        call(fastrnn.torch.GRU(I, H))
    assert fastrnn.kernel_calls() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(4, I + 1)), "inconsistent input_size: got 4 expected 3"),
        (lambda m: m(torch.zeros(1, 4, I)), "1 or 2 dimensions, got 3"),
        (
            lambda m: m(torch.zeros(4, I), (torch.zeros(4, H), torch.zeros(3, H))),
            r"hx\[1\] must have shape \(4, 5\) \(batch, hidden_size\) .*, got \(3, 5\); leave hx out",
        ),
        (
            lambda m: m(torch.zeros(4, I), (torch.zeros(4, H),) * 3),
            r"two tensors \(h_0, c_0\), got a tuple of 3",
        ),
        (
            lambda m: m(torch.zeros(4, I), torch.zeros(4, H)),
            r"two tensors \(h_0, c_0\), got a Tensor; pass both",
        ),
        (
            lambda m: m(torch.zeros(4, I), (torch.zeros(4, H), torch.zeros(4, H).double())),
            r"hx\[1\] must be torch.float32",
        ),
        (lambda m: m(torch.zeros(4, I).double()), "float32 like the weights, got torch.float64"),
    ],
)
def test_what_does_not_fit_a_cell_is_refused(call, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match="fastrnn.torch.LSTMCell: .*" + message):
        call(fastrnn.torch.LSTMCell(I, H))


def test_states_of_a_wrong_form_are_refused():
    module = fastrnn.torch.LSTM(I, H, 2, batch_first=True)
    x, h = torch.zeros(4, 6, I), torch.zeros(4, 2, H)
    with pytest.raises(
        RuntimeError, match=r"hx\[0\] must have shape \(2, 4, 5\) .* got \(4, 2, 5\); .*transpose\(0, 1\)"
    ):
        module(x, (h, h))
    with pytest.raises(
        RuntimeError, match=r"hx\[1\] must have as many dimensions as input, 3, got 2; .*directions, batch"
    ):
        module(x, (h.transpose(0, 1), h[0]))
    with pytest.raises(
        TypeError, match=r"LSTM: hx must be a tuple of two tensors \(h_0, c_0\), got a Tensor; pass both"
    ):
        module(x, h)


def test_tensors_elsewhere_are_refused():
    module = fastrnn.torch.LSTM(I, H)
    with torch._subclasses.FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # no such device is needed for a fake tensor
        x = torch._subclasses.FakeTensor(
            torch._subclasses.FakeTensorMode(), torch.empty(6, 4, I, device="meta"), torch.device("cuda:0")
        )
    with pytest.raises(
        RuntimeError, match=r"input must be on the CPU, got a tensor on cuda:0.*torch\.nn\.LSTM"
    ):
        module(x)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "GRUCell"])
def test_tensors_without_values_beside_others_are_refused(name):
    module = getattr(fastrnn.torch, name)(I, H)
    axes = () if name == "GRUCell" else (1,)
    x, h = torch.zeros(*(6,) * len(axes), 4, I), torch.zeros(*axes, 4, H)
    pair_of = (lambda h: (h, torch.zeros_like(h, device="cpu"))) if name == "LSTM" else lambda h: h
    where = "must be on the device of the weights, cpu, got a tensor on meta"
    with pytest.raises(RuntimeError, match="input " + where):
        module(x.to("meta"), pair_of(h))
    with pytest.raises(RuntimeError, match=r"hx(\[0\])? " + where):
        module(x, pair_of(h.to("meta")))
    with pytest.raises(RuntimeError, match="the weights, meta, got a tensor on cpu"):
        module.to("meta")(x)
    with torch.no_grad():
        assert as_tuple(module(x.to("meta")))[0].is_meta


def test_autocast_computes_in_float32_and_refuses_what_it_made():
    module = fastrnn.torch.LSTM(I, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.zeros(6, 4, I))[0].dtype is torch.float32
        with pytest.raises(
            ValueError, match=r"torch\.autocast is on.*enabled=False.*input\.to\(torch\.float32\)"
        ):
            module(nn.Linear(I, I)(torch.zeros(6, 4, I)))


def test_meta_tensors_give_shapes():
    module = fastrnn.torch.LSTM(I, H, bidirectional=True, device="meta")
    y, (h, c) = module(torch.zeros(6, 4, I, device="meta"))
    assert (y.shape, h.shape, c.shape) == ((6, 4, 2 * H), (2, 4, H), (2, 4, H))


# ---- Autograd and operators


def arguments(mode, directions, masked, requires_grad=True, with_states=True):
    """Of the operator `layer`, in float64."""
    torch.manual_seed(4)
    gates, width = _ops.CELLS[mode].gates, 1 if mode == "LSTM_PROJECTED" else 2

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad)

    shapes = [(gates * 2, I), (gates * 2, width), (gates * 2,), (gates * 2,)]
    shapes += [(1, 2)] * (width == 1)
    weights = [randn(*s) for _ in range(directions) for s in shapes]
    states = [randn(directions, 2, w) for w in (width, 2)[: _ops.CELLS[mode].states]] if with_states else []
    mask = torch.arange(4) < torch.tensor([2, 4])[:, None] if masked else None
    batch_first = directions == 1
    x = randn(2, 4, I) if batch_first else randn(4, 2, I)
    return mode, x, mask, states, weights, directions, batch_first


def as_function(mode, x, mask, states, weights, directions, batch_first):
    """The layer as a function of its tensors, and these."""

    def layer(x, *rest):
        n = len(states)
        return tuple(_ops.layer(mode, x, mask, rest[:n], rest[n:], directions, batch_first, plain=True))

    return layer, (x, *states, *weights)


modes = pytest.mark.parametrize("mode", _ops.CELLS)
directions_and_masks = pytest.mark.parametrize(("directions", "masked"), [(1, False), (2, True)])


@modes
@directions_and_masks
def test_gradients_are_those_of_finite_differences(mode, directions, masked):
    function, tensors = as_function(*arguments(mode, directions, masked))
    assert torch.autograd.gradcheck(function, tensors)


@modes
@directions_and_masks
def test_gradients_of_gradients_are_those_of_finite_differences(mode, directions, masked):
    function, tensors = as_function(*arguments(mode, directions, masked))
    assert torch.autograd.gradgradcheck(function, tensors)


def test_a_third_derivative_is_that_of_torch_nn():
    theirs, ours = pair("LSTM", I, H, dtype=torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64)
    found = []
    for module in (theirs, ours):
        z = x.clone().requires_grad_()
        value = module(z)[0].pow(2).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, z, create_graph=True)
            value = gradient.pow(2).sum()
        found.append(torch.autograd.grad(value, z)[0])
    assert_close(found[1], found[0], 1e-9)


@pytest.mark.parametrize(
    ("mode", "directions", "masked", "with_states", "twice"),
    [
        ("RNN_TANH", 1, False, True, True),
        ("RNN_RELU", 2, True, False, False),
        ("LSTM", 2, True, True, False),
        ("GRU", 1, False, False, False),
        ("LSTM_PROJECTED", 2, False, True, False),
    ],
)
def test_operators_pass_opcheck(mode, directions, masked, with_states, twice):
    args = arguments(mode, directions, masked, with_states=with_states)
    ops = torch.ops.fastrnn
    torch.library.opcheck(ops.layer.default, args)
    torch.library.opcheck(ops.layer_with_tape.default, args, test_utils=("test_schema", "test_faketensor"))
    if not twice:  # tracing the gradient of the gradient, step by step, takes its time
        args = arguments(mode, directions, masked, with_states=with_states, requires_grad=False)
    outputs = ops.layer_with_tape(*args)
    n = 1 + _ops.CELLS[mode].states
    gradients = [torch.randn_like(o) for o in outputs[: n - 1]] + [None]
    tapes = [t.detach() for t in outputs[n:]]
    torch.library.opcheck(ops.layer_backward.default, (mode, gradients, *args[1:], tapes))


def test_a_graph_serves_twice_if_it_is_kept():
    module = fastrnn.torch.GRU(I, H)
    loss = module(torch.randn(6, 4, I))[0].sum()
    first = torch.autograd.grad(loss, module.parameters(), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, module.parameters())))


def test_checkpointed_segments_have_the_same_gradients():
    module = fastrnn.torch.LSTM(I, H)
    x = torch.randn(6, 4, I)
    expected = torch.autograd.grad(module(x)[0].sum(), module.parameters())
    y = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert all(map(torch.equal, expected, torch.autograd.grad(y.sum(), module.parameters())))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # by PyTorch's own use
def test_transforms_of_functions_work_or_are_refused():
    module = fastrnn.torch.LSTM(I, H, 2, bidirectional=True)
    parameters, x = dict(module.named_parameters()), torch.randn(6, 4, I)

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,))[0].pow(2).sum()

    expected = dict(
        zip(parameters, torch.autograd.grad(loss(parameters, x), parameters.values()), strict=True)
    )
    with kernels_ran("LSTM", 4, 4):
        actual = torch.func.grad(loss)(parameters, x)
    assert_same(actual, expected)
    of_rows = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x[:, :, None])
    assert_same({n: g.sum(0) for n, g in of_rows.items()}, expected)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(lambda x: module(x)[0], (x,), (x,))


# ---- Compiler, export, tracing


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own parts
        yield
    torch._dynamo.reset()


def compiled_is_right(name, module, compiled, calls):
    x = torch.randn(4, 6, I)
    expected = results(module, x, None)
    with kernels_ran(name, calls, calls):
        assert_same(results_of(compiled, module, x), expected)
    with torch.no_grad():
        assert_close(compiled(x)[0], module(x)[0], 3e-5)


def results_of(compiled, module, x):
    """`results` of a compiled module, which has the parameters of `module`."""

    class Both(nn.RNNBase):
        def __init__(self):
            nn.Module.__init__(self)

        forward = staticmethod(compiled)
        zero_grad = staticmethod(module.zero_grad)
        named_parameters = staticmethod(module.named_parameters)

    return results(Both(), x, None)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_in_one_graph(name, dynamo):
    module = getattr(fastrnn.torch, name)(I, H, 2, bidirectional=True, batch_first=True)
    compiled_is_right(name, module, torch.compile(module, backend="aot_eager", fullgraph=True), 4)


def test_compiled_cell(dynamo):
    torch._dynamo.config.allow_rnn = False  # cells need no permission
    cell = fastrnn.torch.GRUCell(I, H)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, I)
    assert_close(compiled(x).detach(), cell(x).detach(), 3e-5)


def test_compiled_with_graph_breaks_by_default(dynamo):
    torch._dynamo.config.allow_rnn = False
    module = fastrnn.torch.LSTM(I, H)
    model = nn.ModuleList([nn.Linear(I, I), module])
    compiled = torch.compile(lambda x: module(model[0](x))[0], backend="aot_eager")
    x = torch.randn(6, 4, I)
    with kernels_ran("LSTM", 1):
        y = compiled(x)
    assert_close(y.detach(), module(model[0](x))[0].detach(), 3e-5)


def test_compiled_with_packed_sequences(dynamo):
    module = fastrnn.torch.GRU(I, H)
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, I) for n in (6, 4, 1)])
    y, h = torch.compile(module, backend="aot_eager")(packed)
    expected, h_expected = module(packed)
    assert_close([y.data.detach(), h.detach()], [expected.data.detach(), h_expected.detach()], 3e-5)


def test_compiled_by_inductor(dynamo):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler, and there is none")
    module = fastrnn.torch.LSTM(I, H)
    compiled_is_right("LSTM", module, torch.compile(module, fullgraph=True), 1)


@pytest.mark.parametrize("name", NAMES)
def test_exported_saved_loaded_and_run_for_another_batch(name):
    module = getattr(fastrnn.torch, name)(I, H, 2, batch_first=True)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(module, (torch.randn(4, 6, I),), dynamic_shapes=(dynamic,))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(2, 3, I)
    expected = module(x)
    with torch.no_grad(), kernels_ran(name, 2):
        y, states = loaded(x)
    assert_close([y, *as_tuple(states)], [t.detach() for t in (expected[0], *as_tuple(expected[1]))], 3e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_keeps_the_layer_and_not_its_result():
    module = fastrnn.torch.LSTM(I, H)
    traced = torch.jit.trace(module, (torch.randn(6, 4, I),), check_trace=False)
    x = torch.randn(6, 4, I)
    assert_close(traced(x)[0].detach(), module(x)[0].detach(), 3e-5)


# ---- Modules


@pytest.mark.parametrize("name", NAMES + tuple(n + "Cell" for n in NAMES))
def test_a_module_is_torchs_with_its_state_dict_repr_and_copies(name):
    theirs, ours = pair(name, I, H)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, I) if name.endswith("Cell") else torch.randn(6, 4, I)
    expected = results(ours, x, None)
    assert_same(results(theirs, x, None), expected)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert_same(results(copied, x, None), expected)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert_same(results(torch.load(file, weights_only=False), x, None), expected)


@pytest.mark.parametrize("name", NAMES)
def test_positional_arguments_are_torchs(name):
    args = (I, H, 2, "relu", True, True) if name == "RNN" else (I, H, 2, True, True)
    theirs, ours = pair(name, *args)
    x = torch.randn(4, 6, I)
    assert_same(results(ours, x, None), results(theirs, x, None))


def test_parametrized_weights_are_used():
    theirs, ours = pair("LSTM", I, H)
    x = torch.randn(6, 4, I)
    for module in (theirs, ours):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with kernels_ran("LSTM", 1, 1):
        actual = results(ours, x, None)
    assert_same(actual, results(theirs, x, None))


class Model(nn.Module):
    def __init__(self, kind, library):
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.recurrent = getattr(library, kind)(4, 6, 2, dropout=0.2, bidirectional=True, batch_first=True)
        self.cell = getattr(library, kind + "Cell")(12, 6)
        self.dense = nn.Linear(6, 1)

    def forward(self, ids):
        y, _ = self.recurrent(self.embedding(ids))
        return self.dense(as_tuple(self.cell(y.mean(1)))[0])[:, 0]


def train(model, steps=20):
    """The losses of some steps of Adam."""
    torch.manual_seed(5)
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(0, 20, (16, 8)))
    target = (ids % 2).float().mean(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(ids) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_training_has_the_losses_of_torch_nn(name):
    losses = []
    for library in (nn, fastrnn.torch):
        torch.manual_seed(6)
        losses.append(train(Model(name, library)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    assert losses[0][-1] < losses[0][0] / 2


# ---- accelerate


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_replaces_in_place_and_an_optimizer_goes_on(name):
    torch.manual_seed(6)
    model = Model(name, nn)
    expected = train(copy.deepcopy(model))
    parameters, modules, state_dict = list(model.parameters()), list(model.modules()), model.state_dict()
    done = fastrnn.torch.accelerate(model)
    assert done.model is model and done.replaced == ["recurrent", "cell"] and done.kept == {}
    assert str(done) == "fastrnn runs recurrent\nfastrnn runs cell"
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == list(state_dict)
    with kernels_ran(name, 100, 100):
        assert np.allclose(train(model), expected, 1e-4, 1e-4)
    again = fastrnn.torch.accelerate(model)
    assert again.replaced == [] and again.kept == {}


def test_accelerate_takes_a_recurrent_module_itself():
    module = nn.GRU(I, H)
    done = fastrnn.torch.accelerate(module)
    assert done.model is module and type(module) is fastrnn.torch.GRU and done.replaced == [""]
    assert str(done) == "fastrnn runs the model"


def test_accelerate_says_what_it_kept_and_why():
    class Mine(nn.LSTM):
        pass

    patched = nn.GRU(I, H)
    patched.forward = lambda *args: None
    model = nn.ModuleDict(
        {
            "mine": Mine(I, H),
            "narrow": nn.GRU(I, H).half(),
            "elsewhere": nn.RNN(I, H, device="meta"),
            "patched": patched,
            "good": nn.RNN(I, H),
        }
    )
    done = fastrnn.torch.accelerate(model)
    assert done.replaced == ["good"]
    reasons = {
        "mine": "Mine",
        "narrow": "float16",
        "elsewhere": "on meta",
        "patched": "forward",
    }
    assert done.kept.keys() == reasons.keys()
    assert all(reason in done.kept[name] for name, reason in reasons.items())
    assert "PyTorch runs mine: Mine is a class of its own" in str(done)
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn\.Module, got a dict"):
        fastrnn.torch.accelerate({})


# ---- Imports


def test_fastrnn_imports_no_torch(run_python):
    assert run_python("import sys, fastrnn; print('torch' in sys.modules)") == "False\n"


def test_torchs_number_of_threads_is_fastrnns_until_that_is_set(run_python):
    code = """
    import torch, fastrnn.torch
    torch.set_num_threads(1)
    print(fastrnn.get_num_threads())
    fastrnn.set_num_threads(2)
    torch.set_num_threads(1)
    print(fastrnn.get_num_threads(), torch.get_num_threads())
    """
    assert run_python(code).split() == ["1", "2", "1"]


def test_without_torch_the_import_error_names_the_extra(run_python):
    code = """
    import sys
    sys.modules["torch"] = None
    try:
        import fastrnn.torch
    except ImportError as error:
        print(error)
    """
    assert "pip install fastrnn[torch]" in run_python(code)


# ---- What a review of odd inputs found


@pytest.mark.parametrize("mode", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_batches_without_rows_are_as_in_torch_nn(mode, batch_first):
    shape = (0, 6, 3) if batch_first else (6, 0, 3)
    options = dict(num_layers=2, bidirectional=True, batch_first=batch_first)
    results = []
    for module in (torch.nn, fastrnn.torch):
        x = torch.zeros(shape, requires_grad=True)
        y = getattr(module, mode)(3, 4, **options)(x)[0]
        y.sum().backward()
        results.append((y.shape, x.grad.shape))
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_is_refused(frozen):
    from torch.autograd import forward_ad

    layer, x = fastrnn.torch.GRU(3, 4).requires_grad_(not frozen), torch.ones(5, 2, 3)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="reverse mode"):
        layer(forward_ad.make_dual(x, x))


def test_lazily_negated_tensors_are_read_right():
    x = torch.fft.fft(torch.ones(5, 2, 3) * torch.arange(3.0)).conj().imag
    assert x.is_neg()
    layer = fastrnn.torch.LSTM(3, 4)
    torch.testing.assert_close(layer(x)[0], layer(x.clone())[0], rtol=0, atol=0)


def negated(t):
    """-t, negated lazily."""
    found = torch.complex(torch.zeros_like(t), t).conj().imag
    assert found.is_neg()
    return found


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_lazily_negated_states_and_gradients_are_read_right(name, wrapped):
    module = getattr(fastrnn.torch, name)(3, 4)
    x = torch.randn(*(() if name == "RNNCell" else (5,)), 2, 3)
    h = torch.randn(*(() if name == "RNNCell" else (1,)), 2, 4)
    given = (lambda t: (t, t)) if name == "LSTM" else lambda t: t
    found = []
    for of in (negated, lambda t: -t):
        y = as_tuple(module(x, given(of(h))))[0]
        found.append(
            [y, *torch.autograd.grad(y, module.parameters(), of(torch.ones_like(y)), create_graph=wrapped)]
        )
    for a, b in zip(*found, strict=True):
        assert_close(a.detach(), b.detach(), 1e-6)


def test_tensors_without_memory_are_no_crash():
    module = fastrnn.torch.RNN(3, 4)
    zeros = torch._efficientzerotensor((5, 2, 3))
    assert_close(module(zeros)[0].detach(), module(torch.zeros(5, 2, 3))[0].detach(), 0)
    y = module(torch.ones(5, 2, 3))[0]
    for gradient in torch.autograd.grad(y, module.parameters(), torch._efficientzerotensor(y.shape)):
        assert not gradient.any()
    x = torch.ones(5, 2, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises((RuntimeError, ValueError)):
        module(x)


def test_a_loss_that_is_kept_keeps_no_tape():
    layer = fastrnn.torch.LSTM(3, 4)
    loss = layer(torch.ones(5, 2, 3))[0].sum()
    node = loss.grad_fn.next_functions[0][0]
    loss.backward(retain_graph=True)
    assert len(node.tapes) == 1
    loss.backward()
    assert not hasattr(node, "tapes")
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_hooks_get_all_that_is_saved(name):
    module = getattr(fastrnn.torch, name)(3, 4)
    x = torch.randn(*(() if name.endswith("Cell") else (5,)), 2, 3)
    expected = results(module, x, None)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.clone()) or packed[-1], lambda t: t
    ):
        assert_same(results(module, x, None), expected)
    tape = (2, 1, 4, 4) if name.endswith("Cell") else (2, 5, _ops.CELLS[name].tape_slots, 4)
    assert tape[1:2] + tape[3:] in [t.shape[1:2] + t.shape[3:] for t in packed if t.dim() == 4]


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_checkpoints_take_tensors_that_the_kernels_cannot_read_where_they_are(name):
    module = getattr(fastrnn.torch, name)(3, 4)
    x = negated(torch.randn(*(() if name.endswith("Cell") else (5,)), 2, 3))

    def output(x):
        return as_tuple(module(x))[0]

    expected = torch.autograd.grad(output(x).sum(), module.parameters())
    y = torch.utils.checkpoint.checkpoint(output, x, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.sum(), module.parameters()), expected, strict=True):
        assert_close(a, b, 0)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_no_two_gradients_overlap(name):
    module = getattr(fastrnn.torch, name)(3, 4, **({} if name.endswith("Cell") else {"bidirectional": True}))
    x = torch.randn(*(() if name.endswith("Cell") else (5,)), 2, 3)
    found = torch.autograd.grad(as_tuple(module(x))[0].sum(), module.parameters())
    expected = [g.clone() for g in found]
    for g in found:
        g.mul_(2)
    for g, before in zip(found, expected, strict=True):
        assert_close(g, 2 * before, 0)
