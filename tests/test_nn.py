"""Module, containers, layers: registration, state, hooks, errors. Values are tested in parity/."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        self.scale = nn.Parameter(grebe.ones(1))
        self.register_buffer("steps", grebe.zeros(1))
        self.register_buffer("cache", grebe.zeros(2), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.net(x) * self.scale


def equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a.detach().numpy(), b.detach().numpy()))


# ---- registration ----


def test_assigning_registers() -> None:
    m = Net()
    assert [n for n, _ in m.named_parameters()] == [
        "scale", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias",
    ]  # fmt: skip
    assert [n for n, _ in m.named_buffers()] == ["steps", "cache"]
    assert [n for n, _ in m.named_children()] == ["net"]
    assert [n for n, _ in m.named_modules()] == ["", "net", "net.0", "net.1", "net.2"]
    assert [n for n, _ in m.named_modules(prefix="m")][:2] == ["m", "m.net"]
    assert [n for n, _ in m.named_parameters(prefix="p", recurse=False)] == ["p.scale"]
    assert list(m._parameters) == ["scale"]
    assert m._modules["net"] is m.net
    assert "scale" in dir(m) and "0" not in dir(m.net)


def test_shared_members_are_listed_once() -> None:
    layer = nn.Linear(2, 2)
    m = nn.Sequential(layer, layer)
    assert len(list(m.parameters())) == 2
    assert len(list(m.children())) == 1
    names = [n for n, _ in m.named_parameters(remove_duplicate=False)]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(m.state_dict()) == names


def test_reassigning_keeps_the_kind() -> None:
    m = Net()
    with pytest.raises(TypeError, match="cannot assign 'Tensor' as parameter 'scale'"):
        m.scale = grebe.ones(1)
    with pytest.raises(TypeError, match="as child module 'net'"):
        m.net = 3
    with pytest.raises(TypeError, match="as buffer 'steps'"):
        m.steps = 3
    m.scale = None
    assert m._parameters["scale"] is None
    assert "scale" not in dict(m.named_parameters())
    m.scale = nn.Parameter(grebe.zeros(1))
    m.steps = grebe.ones(1)
    assert list(m._buffers) == ["steps", "cache"]
    m.net = nn.Linear(4, 2)
    assert [n for n, _ in m.named_children()] == ["net"]
    m.steps = nn.Parameter(grebe.ones(1))
    assert list(m._buffers) == ["cache"] and list(m._parameters) == ["scale", "steps"]


def test_a_plain_attribute_becomes_a_member() -> None:
    m = nn.Module()
    m.x = 3
    m.x = nn.Linear(1, 1)
    assert list(m._modules) == ["x"]
    del m.x
    assert not hasattr(m, "x") and not m._modules
    with pytest.raises(AttributeError):
        del m.x
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'share_memory'"):
        m.share_memory()


def test_writing_through_the_member_views() -> None:
    m = nn.Module()
    m._modules["a"] = nn.ReLU()
    m._parameters["p"] = nn.Parameter(grebe.ones(1))
    m._buffers["b"] = grebe.ones(1)
    assert isinstance(m.a, nn.ReLU) and list(m.state_dict()) == ["p", "b"]
    m._modules.pop("a")
    assert not hasattr(m, "a")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("a.b", KeyError, 'contain "."'),
        ("", KeyError, "empty string"),
        (3, TypeError, "should be a string. Got int"),
        ("forward", KeyError, "attribute 'forward' already exists"),
    ],
)
def test_bad_names(name: Any, error: type[Exception], text: str) -> None:
    m = nn.Module()
    for register in (m.register_buffer, m.register_parameter, m.add_module):
        with pytest.raises(error, match=text):
            register(name, None)  # type: ignore[operator]


def test_bad_values() -> None:
    m = nn.Module()
    with pytest.raises(TypeError, match="cannot assign 'Tensor' object to parameter 'w'"):
        m.register_parameter("w", grebe.ones(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot assign 'int' object to buffer 'b'"):
        m.register_buffer("b", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int is not a Module subclass"):
        m.add_module("m", 3)  # type: ignore[arg-type]


def test_assigning_before_init() -> None:
    class Early(nn.Module):
        def __init__(self, value: Any) -> None:
            self.value = value

    for value in (nn.ReLU(), nn.Parameter(grebe.ones(1)), nn.Buffer(grebe.ones(1))):
        with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
            Early(value)


def test_missing_forward() -> None:
    with pytest.raises(NotImplementedError, match='missing the required "forward"'):
        nn.Module()()


def test_get_by_path() -> None:
    m = Net()
    assert m.get_submodule("net.0") is m.net[0]
    assert m.get_submodule("") is m
    assert m.get_parameter("net.0.weight") is m.net[0].weight
    assert m.get_buffer("steps") is m.steps
    with pytest.raises(AttributeError, match="Sequential has no attribute `7`"):
        m.get_submodule("net.7")
    with pytest.raises(AttributeError, match=r"`steps` is not an nn\.Parameter"):
        m.get_parameter("steps")
    with pytest.raises(AttributeError, match="`scale` is not a buffer"):
        m.get_buffer("scale")


# ---- parameters ----


def test_parameter() -> None:
    data = grebe.ones(2)
    p = nn.Parameter(data)
    assert p.requires_grad and p.is_leaf and isinstance(p, grebe.Tensor)
    data.fill_(3.0)
    assert p.detach().numpy().tolist() == [3, 3]
    assert type(p + 1) is grebe.Tensor
    assert repr(p).startswith("Parameter containing:\n")
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    with pytest.raises(TypeError, match="Parameter: data must be a Tensor or None, got list"):
        nn.Parameter([1.0])
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(grebe.tensor([1]))


def test_buffer_class() -> None:
    m = nn.Module()
    m.a = nn.Buffer(grebe.ones(1))
    m.b = nn.Buffer(grebe.ones(1), persistent=False)
    assert list(m._buffers) == ["a", "b"] and list(m.state_dict()) == ["a"]
    again = pickle.loads(pickle.dumps(m))
    assert list(again.state_dict()) == ["a"] and not copy.deepcopy(m).b.persistent


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(again: Any) -> None:
    m = Net()
    m(grebe.ones(1, 4)).sum().backward()
    twin = again(m)
    assert type(twin) is Net and list(twin.state_dict()) == list(m.state_dict())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in twin.parameters())
    x = grebe.randn(5, 4)
    assert equal(m(x), twin(x))
    with grebe.no_grad():
        twin.scale.fill_(2.0)
    assert not equal(m(x), twin(x))


# ---- mode, dtype, gradients ----


def test_train_and_eval() -> None:
    m = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    x = grebe.randn(64, 3)
    assert m.training and not equal(m(x), m(x))
    assert m.eval() is m and not m[0].training
    assert equal(m(x), m(x))
    with pytest.raises(ValueError, match="boolean"):
        m.train(1)  # type: ignore[arg-type]


def test_apply_visits_children_first() -> None:
    seen: list[str] = []
    Net().apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Net"]


def test_requires_grad_and_zero_grad() -> None:
    m = Net()
    m(grebe.ones(1, 4)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    m.zero_grad(set_to_none=False)
    assert all(not p.grad.numpy().any() for p in m.parameters())  # type: ignore[union-attr]
    m.zero_grad()
    assert all(p.grad is None for p in m.parameters())
    m.requires_grad_(False)
    assert not m(grebe.ones(1, 4)).requires_grad


def test_to_dtype_keeps_identity() -> None:
    m = Net()
    m(grebe.ones(1, 4)).sum().backward()
    before = list(m.parameters())
    m.register_buffer("count", grebe.tensor(3))
    assert m.double() is m
    assert all(a is b for a, b in zip(before, m.parameters(), strict=True))
    assert {p.dtype for p in m.parameters()} == {grebe.float64}
    assert m.scale.grad.dtype == grebe.float64
    assert m.steps.dtype == grebe.float64 and m.count.dtype == grebe.int64
    assert m(grebe.ones(1, 4, dtype=grebe.float64)).dtype == grebe.float64
    assert m.to(grebe.ones(1)).scale.dtype == grebe.float32
    assert m.to("cpu", grebe.float64).scale.dtype == grebe.float64
    assert m.float().scale.dtype == grebe.float32
    assert m.type(grebe.float64).scale.dtype == grebe.float64
    assert m.cpu() is m
    with pytest.raises(TypeError, match="only floating point dtypes"):
        m.to(grebe.int64)
    with pytest.raises(TypeError, match="unexpected keyword"):
        m.to(devise="cpu")
    with pytest.raises(TypeError, match="got list"):
        m.to([1])


def test_cuda_says_why_not() -> None:
    with pytest.raises(RuntimeError, match="'cuda' is not available"):
        nn.ReLU().cuda()
    with pytest.raises(RuntimeError, match="cuda"):
        nn.Linear(1, 1, device="cuda")


# ---- state ----


def test_state_dict_round_trip() -> None:
    a, b = Net(), Net()
    state = a.state_dict()
    assert list(state) == [
        "scale", "steps", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias",
    ]  # fmt: skip
    assert not any(value.requires_grad for value in state.values())
    keys = b.load_state_dict(state)
    assert keys == ([], []) and repr(keys) == "<All keys matched successfully>"
    x = grebe.randn(3, 4)
    assert equal(a(x), b(x))
    with grebe.no_grad():
        a.scale.fill_(7.0)
    assert state["scale"].item() == 7 and b.scale.item() == 1
    assert a.state_dict(keep_vars=True)["scale"] is a.scale
    assert next(iter(a.state_dict(prefix="m."))) == "m.scale"
    assert state._metadata["net.0"] == {"version": 1}


def test_state_dict_from_arrays() -> None:
    m = nn.Linear(2, 1)
    m.load_state_dict({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0], np.float32)})
    assert m(grebe.ones(1, 2)).item() == 6 and m.weight.dtype == grebe.float32


def test_load_errors_name_everything() -> None:
    m = Net()
    state = m.state_dict()
    del state["steps"]
    state["extra"] = grebe.ones(1)
    state["net.9.weight"] = grebe.ones(1)
    state["net.0.weight"] = grebe.ones(2, 2)
    state["net.0.bias"] = "text"
    with pytest.raises(RuntimeError) as caught:
        m.load_state_dict(state)
    text = str(caught.value)
    assert text.startswith("Error(s) in loading state_dict for Net:\n\t")
    assert 'Missing key(s) in state_dict: "steps". ' in text
    assert 'Unexpected key(s) in state_dict: "extra", "net.9.weight". ' in text
    assert "size mismatch for net.0.weight: copying a param with shape" in text
    assert "the shape in current model is" in text and "[3, 4]" in text and "[2, 2]" in text
    assert '"net.0.bias", expected a Tensor or an array' in text
    with pytest.raises(TypeError, match="dict-like"):
        m.load_state_dict([1])  # type: ignore[arg-type]


def test_load_not_strict() -> None:
    m = Net()
    keys = m.load_state_dict({"scale": grebe.zeros(1), "other": grebe.zeros(1)}, strict=False)
    assert "other" in keys.unexpected_keys and "steps" in keys.missing_keys
    assert m.scale.item() == 0


def test_load_assign() -> None:
    m = nn.Linear(2, 2, bias=False)
    m.weight.requires_grad_(False)
    value = grebe.ones(2, 2, dtype=grebe.float64)
    m.load_state_dict({"weight": value}, assign=True)
    assert m.weight.dtype == grebe.float64 and not m.weight.requires_grad
    value.fill_(5.0)
    assert m.weight.numpy()[0, 0] == 5


def test_extra_state() -> None:
    class Extra(nn.Module):
        extra: Any = 1

        def get_extra_state(self) -> Any:
            return self.extra

        def set_extra_state(self, state: Any) -> None:
            self.extra = state

    a, b = Extra(), Extra()
    a.extra = 5
    b.load_state_dict(a.state_dict())
    assert b.extra == 5
    with pytest.raises(RuntimeError, match="_extra_state"):
        b.load_state_dict({})
    with pytest.raises(RuntimeError, match="_extra_state"):
        nn.Module().load_state_dict(a.state_dict())


def test_state_dict_hooks() -> None:
    m, calls = Net(), []
    m.register_state_dict_pre_hook(lambda module, prefix, keep: calls.append(prefix))
    m.register_state_dict_post_hook(lambda module, state, prefix, meta: state.update(more=1))
    assert m.state_dict()["more"] == 1 and calls == [""]
    m.register_load_state_dict_pre_hook(lambda module, state, *_: state.pop("more"))
    m.register_load_state_dict_post_hook(lambda module, keys: keys.missing_keys.clear())
    state = m.state_dict()
    del state["steps"]
    m.load_state_dict(state)


def test_batch_norm_reads_files_without_a_count() -> None:
    m = nn.BatchNorm1d(2)
    state = dict(m.state_dict())
    del state["num_batches_tracked"]
    m.load_state_dict(state)


# ---- hooks ----


def test_forward_hooks() -> None:
    m, x = nn.Linear(2, 2), grebe.ones(1, 2)
    plain = m(x)
    seen: list[Any] = []
    first = m.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    second = m.register_forward_hook(lambda module, args, out: seen.append(args) or out + 1)
    assert np.allclose(m(x).detach().numpy(), m.bias.detach().numpy() + 1)
    assert equal(seen[0][0], x * 0)
    first.remove()
    assert equal(m(x), plain + 1)
    second.remove()
    assert equal(m(x), plain)


def test_removing_twice_takes_no_other_hook_away() -> None:
    m, seen = nn.ReLU(), []
    first = m.register_forward_hook(lambda *_: None)
    first.remove()
    m.register_forward_hook(lambda *_: seen.append(1))
    first.remove()
    m(grebe.ones(1))
    assert seen == [1]


def test_forward_hooks_with_kwargs_and_order() -> None:
    class Add(nn.Module):
        def forward(self, a: Any, *, b: Any = 0) -> Any:
            return a + b

    m, order = Add(), []
    m.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"b": kwargs["b"] * 10}), with_kwargs=True
    )
    m.register_forward_hook(lambda *_: order.append("a"))
    m.register_forward_hook(lambda *_: order.append("b"), prepend=True)
    m.register_forward_hook(
        lambda module, args, kwargs, out: order.append(kwargs["b"]), with_kwargs=True
    )
    assert m(1, b=2) == 21 and order == ["b", "a", 20]
    m.register_forward_pre_hook(lambda module, args, kwargs: 3, with_kwargs=True)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        m(1, b=2)


def test_forward_hook_always_called() -> None:
    m, seen = nn.Linear(2, 2), []
    m.register_forward_hook(lambda module, args, out: seen.append(out), always_call=True)
    with pytest.raises((RuntimeError, ValueError)):
        m(grebe.ones(1, 3))
    assert seen == [None]


def test_full_backward_hooks() -> None:
    m, x = nn.Linear(2, 3), grebe.ones(4, 2, requires_grad=True)
    plain = grebe.autograd.grad(m(x).sum(), x)[0]
    seen: list[Any] = []
    m.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 2,))
    m.register_full_backward_hook(lambda module, gi, go: seen.append((gi, go)) or (gi[0] * 3,))
    m(x).sum().backward()
    assert np.allclose(x.grad.numpy(), 6 * plain.numpy())
    (gradients, outputs) = seen[0]
    assert np.allclose(gradients[0].numpy(), 2 * plain.numpy())
    assert np.allclose(outputs[0].numpy(), 2)
    assert np.allclose(m.bias.grad.numpy(), 8)


def test_full_backward_hook_without_input_gradient() -> None:
    m, seen = nn.Linear(2, 3), []
    handle = m.register_full_backward_hook(lambda module, gi, go: seen.append((gi, go)))
    m(grebe.ones(4, 2)).sum().backward()
    assert seen[0][0] == (None,) and seen[0][1][0].shape == (4, 3)
    handle.remove()
    m(grebe.ones(4, 2)).sum().backward()
    assert len(seen) == 1


def test_full_backward_hook_with_several_tensors() -> None:
    class Two(nn.Module):
        def forward(self, a: Any, b: Any, n: int) -> Any:
            return a * b, a + b

    m, seen = Two(), []
    m.register_full_backward_hook(lambda module, gi, go: seen.append((gi, go)))
    a, b = grebe.ones(2, requires_grad=True), grebe.full((2,), 3.0, requires_grad=True)
    product, _ = m(a, b, 5)
    product.sum().backward()
    ((gi, go),) = seen
    assert gi[0].numpy().tolist() == [3, 3] and gi[1].numpy().tolist() == [1, 1] and gi[2] is None
    assert go[0].numpy().tolist() == [1, 1] and go[1] is None
    assert a.grad.numpy().tolist() == [3, 3]


# ---- errors name the module ----


def test_errors_carry_the_path() -> None:
    m = Net()
    with pytest.raises((RuntimeError, ValueError), match=r"^net\.0 \(Linear\): ") as caught:
        m(grebe.ones(2, 5))
    assert "5" in str(caught.value) and "4" in str(caught.value)
    with pytest.raises((RuntimeError, ValueError), match=r"^Linear: "):
        m.net[0](grebe.ones(2, 5))
    with pytest.raises((RuntimeError, ValueError), match=r"^0 \(Linear\): "):
        m.net(grebe.ones(2, 5))
    with pytest.raises(ValueError, match=r"^BatchNorm2d: expected 4D input \(got 2D input"):
        nn.BatchNorm2d(3)(grebe.ones(2, 3))


def test_errors_of_other_kinds_are_left_alone() -> None:
    class Odd(nn.Module):
        def forward(self) -> Any:
            raise KeyError("key")

    with pytest.raises(KeyError, match=r"^'key'$"):
        nn.Sequential(Odd())[0]()


# ---- containers ----


def test_sequential() -> None:
    m = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    assert len(m) == 2 and isinstance(m[-1], nn.ReLU) and len(m[:1]) == 1
    m.append(nn.Linear(3, 1)).insert(1, nn.Tanh())
    assert [type(c).__name__ for c in m] == ["Linear", "Tanh", "ReLU", "Linear"]
    assert [n for n, _ in m.named_children()] == ["0", "1", "2", "3"]
    del m[1]
    assert list(m.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    m[1] = nn.Sigmoid()
    assert isinstance(m.pop(1), nn.Sigmoid) and len(m) == 2
    assert len(m + m) == 4 and len(m * 3) == 6
    named = nn.Sequential(OrderedDict([("a", nn.ReLU()), ("b", nn.Tanh())]))
    assert named.a is named[0]
    assert m(grebe.ones(5, 2)).shape == (5, 1)
    for bad in (5, -6):
        with pytest.raises(IndexError, match="out of range"):
            m[bad]
    with pytest.raises(TypeError, match="int is not a Module subclass"):
        nn.Sequential(3)


def test_module_list() -> None:
    m = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    m.append(nn.ReLU()).extend([nn.Tanh()])
    m += [nn.Sigmoid()]
    assert len(m) == 6 and isinstance(m[-1], nn.Sigmoid) and len(m[1:3]) == 2
    m.insert(0, nn.GELU())
    del m[0]
    m[3] = nn.Linear(2, 2)
    assert len(m + [nn.ReLU()]) == 7
    assert repr(m).startswith("ModuleList(\n  (0-2): 3 x Linear(in_features=1, ")
    assert len(list(m.parameters())) == 8
    with pytest.raises(TypeError, match="iterable"):
        m.extend(3)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        m()


def test_module_dict() -> None:
    m = nn.ModuleDict({"a": nn.Linear(1, 1)})
    m["b"] = nn.ReLU()
    m.update([("c", nn.Tanh())])
    assert list(m) == list(m.keys()) == ["a", "b", "c"] and "a" in m and len(m) == 3
    assert isinstance(m.pop("b"), nn.ReLU) and [k for k, _ in m.items()] == ["a", "c"]
    del m["c"]
    assert list(m.state_dict()) == ["a.weight", "a.bias"]
    m.clear()
    assert not list(m.values())
    with pytest.raises(KeyError):
        m["a"]
    with pytest.raises(KeyError, match="already exists"):
        m["keys"] = nn.ReLU()
    with pytest.raises(ValueError, match="pair"):
        m.update([3])


def test_parameter_list() -> None:
    m = nn.ParameterList([grebe.ones(2), nn.Parameter(grebe.zeros(3)), "text"])
    m.append(grebe.ones(1))
    assert len(m) == 4 and m[2] == "text" and isinstance(m[0], nn.Parameter)
    assert list(m.state_dict()) == ["0", "1", "3"]
    assert len(m[:2]) == 2 and m[-1].shape == (1,)
    assert "(0): Parameter containing: [float32 of size 2]" in repr(m)
    with pytest.raises(IndexError):
        m[9]
    with pytest.raises(TypeError, match="iterable"):
        m.extend(grebe.ones(2))
    with pytest.raises(RuntimeError, match="should not be called"):
        m()


def test_parameter_dict() -> None:
    m = nn.ParameterDict({"a": grebe.ones(2)})
    m["b"] = grebe.zeros(1)
    assert list(m) == ["a", "b"] and isinstance(m["b"], nn.Parameter) and "a" in m
    assert list(m.state_dict()) == ["a", "b"] and m.get("z") is None
    assert m.setdefault("c", grebe.ones(1)).shape == (1,)
    assert list(m.copy().keys()) == ["a", "b", "c"]
    assert m.popitem()[0] == "c" and m.pop("a").shape == (2,) and len(m) == 1
    assert list((m | {"d": grebe.ones(1)}).keys()) == ["b", "d"]
    with pytest.raises(KeyError):
        m["a"]
    m.clear()
    assert len(m) == 0 and not list(m.parameters())


def test_repr() -> None:
    assert repr(Net()) == (
        "Net(\n"
        "  (net): Sequential(\n"
        "    (0): Linear(in_features=4, out_features=3, bias=True)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(in_features=3, out_features=2, bias=True)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Sequential()) == "Sequential()"


# ---- lazy layers ----


@pytest.mark.parametrize(
    ("lazy", "eager", "shape"),
    [
        (nn.LazyLinear(3), nn.Linear(5, 3), (2, 5)),
        (nn.LazyConv1d(4, 3), nn.Conv1d(5, 4, 3), (2, 5, 9)),
        (nn.LazyConv2d(4, 3, groups=2, bias=False), nn.Conv2d(6, 4, 3, groups=2, bias=False),
         (2, 6, 9, 8)),
        (nn.LazyConv3d(4, 3), nn.Conv3d(5, 4, 3), (2, 5, 4, 5, 3)),
        (nn.LazyConvTranspose1d(4, 3), nn.ConvTranspose1d(5, 4, 3), (2, 5, 9)),
        (nn.LazyConvTranspose2d(4, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2),
         (2, 6, 3, 4)),
        (nn.LazyConvTranspose3d(4, 3, bias=False), nn.ConvTranspose3d(5, 4, 3, bias=False),
         (2, 5, 2, 3, 2)),
        (nn.LazyBatchNorm1d(), nn.BatchNorm1d(5), (4, 5)),
        (nn.LazyBatchNorm2d(affine=False), nn.BatchNorm2d(3, affine=False), (4, 3, 2, 2)),
        (nn.LazyBatchNorm2d(track_running_stats=False),
         nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 2, 2)),
    ],
)  # fmt: skip
def test_lazy(lazy: Any, eager: Any, shape: tuple[int, ...]) -> None:
    lazy, loaded, unpickled = (copy.deepcopy(lazy), copy.deepcopy(lazy),
                               pickle.loads(pickle.dumps(lazy)))  # fmt: skip
    x = grebe.randn(*shape)
    parameters = list(lazy.parameters())
    eager(x), lazy(x), unpickled(x)
    assert type(lazy) is type(unpickled) is type(eager) and repr(lazy) == repr(eager)
    assert {k: v.shape for k, v in lazy.state_dict().items()} == {
        k: v.shape for k, v in eager.state_dict().items()
    }
    assert all(a is b for a, b in zip(parameters, lazy.parameters(), strict=True))
    assert all(type(p) is nn.Parameter for p in lazy.parameters())
    loaded.load_state_dict(eager.state_dict())
    assert equal(loaded.eval()(x), eager.eval()(x)) and repr(loaded) == repr(eager)


def test_uninitialized() -> None:
    m = nn.LazyLinear(3).double()
    assert "UninitializedParameter" in repr(m.weight) and m.weight.dtype == grebe.float64
    for use in (lambda: m.weight + 1, lambda: m.weight.shape, lambda: m.weight.sum()):
        with pytest.raises(ValueError, match="no shape or values yet"):
            use()
    state = m.state_dict()
    assert isinstance(state["weight"], nn.UninitializedParameter)
    nn.LazyLinear(3).load_state_dict(state)
    with pytest.raises(RuntimeError, match="no shape yet in the checkpoint"):
        nn.Linear(1, 3).load_state_dict(state)
    optimizer_like = list(m.parameters())
    m(grebe.ones(2, 4, dtype=grebe.float64)).sum().backward()
    assert optimizer_like[0].grad.shape == (3, 4)
    assert optimizer_like[0].dtype == grebe.float64


def test_lazy_errors_carry_the_path() -> None:
    m = nn.Sequential(nn.Flatten(), nn.LazyConv2d(3, 3))
    with pytest.raises(ValueError, match=r"^1 \(LazyConv2d\): expected an input of 3 or 4 dims"):
        m(grebe.ones(2, 3))
    with pytest.raises(ValueError, match="divisible by groups, got 3 and 2"):
        nn.LazyConv2d(4, 3, groups=2)(grebe.ones(1, 3, 5, 5))


# ---- constructor arguments ----


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nn.Linear(-1, 2), ValueError, "Linear: in_features must be at least 0, got -1"),
        (lambda: nn.Linear(2.0, 2), TypeError, "Linear: in_features must be an int, got float"),
        (lambda: nn.Linear(2, 2, dtype=grebe.int64), TypeError, "floating point, got int64"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels must be divisible by"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "out_channels must be divisible by"),
        (lambda: nn.Conv2d(3, 4, 0), ValueError, "kernel_size must be at least 1"),
        (lambda: nn.Conv2d(3, 4, (1, 2, 3)), ValueError, "an int or 2 ints, got 3"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "'same' or 'valid'"),
        (lambda: nn.Conv2d(3, 4, 3, 2, "same"), ValueError, "not supported for strided"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="odd"), ValueError, "padding_mode must be one"),
        (lambda: nn.MaxPool2d(2, padding=2), ValueError, "at most half of kernel_size"),
        (lambda: nn.MaxPool2d("2"), TypeError, "kernel_size must be an int"),
        (lambda: nn.AvgPool2d(2, divisor_override=0), ValueError, "divisor_override"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), ValueError, "an int or 2 ints"),
        (lambda: nn.Dropout(1.5), ValueError, "between 0 and 1, but got 1.5"),
        (lambda: nn.Dropout("x"), TypeError, "p must be a number"),
        (lambda: nn.BatchNorm2d(2.5), TypeError, "num_features must be an int"),
        (lambda: nn.LayerNorm(()), ValueError, "at least one size"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, "padding_idx must be below"),
        (lambda: nn.Embedding(3, 2, sparse=True), NotImplementedError, "sparse"),
        (lambda: nn.GELU("sigmoid"), ValueError, "'none' or 'tanh'"),
        (lambda: nn.Hardtanh(1, -1), ValueError, "larger than min_val"),
        (lambda: nn.Softmax("x"), TypeError, "dim must be an int or None"),
        (lambda: nn.Unflatten(1, 3), TypeError, "tuple of ints"),
        (lambda: nn.MSELoss(reduction="avg"), ValueError, "reduction must be one of"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, "between 0 and 1"),
        (lambda: nn.HuberLoss(delta=0), ValueError, "delta must be positive"),
    ],
)
def test_constructor_errors(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_old_loss_arguments_warn() -> None:
    with pytest.warns(UserWarning, match="reduction='sum'"):
        assert nn.MSELoss(size_average=False).reduction == "sum"


# ---- parameters as one vector ----


def test_parameters_as_vector() -> None:
    m = Net()
    vector = nn.utils.parameters_to_vector(m.parameters())
    assert vector.shape == (sum(p.numel() for p in m.parameters()),)
    (vector * vector).sum().backward()
    assert equal(m.net[0].weight.grad, m.net[0].weight * 2)
    nn.utils.vector_to_parameters(vector.detach() * 0 + 3, m.parameters())
    assert all((p.detach().numpy() == 3).all() for p in m.parameters())
    assert all(p.is_leaf for p in m.parameters())
    with pytest.raises(ValueError, match="at least one"):
        nn.utils.parameters_to_vector([])
    with pytest.raises(ValueError, match=r"vector of 24 elements, got shape \[3\]"):
        nn.utils.vector_to_parameters(grebe.ones(3), m.parameters())
    with pytest.raises(TypeError, match="got list"):
        nn.utils.vector_to_parameters([1.0], m.parameters())  # type: ignore[arg-type]


# ---- functions composed here ----


def test_one_hot() -> None:
    y = F.one_hot(grebe.tensor([[0, 2], [1, 1]]), 3)
    assert y.dtype == grebe.int64
    assert y.numpy().tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 1, 0]]]
    assert F.one_hot(grebe.tensor([0, 4])).shape == (2, 5)
    with pytest.raises(IndexError, match="index 3 is out of range, expected 0 to 2"):
        F.one_hot(grebe.tensor([3]), 3)
    with pytest.raises(IndexError, match="index -1"):
        F.one_hot(grebe.tensor([-1]), 3)
    with pytest.raises(TypeError, match="integers, got float32"):
        F.one_hot(grebe.ones(1), 3)
    with pytest.raises(ValueError, match="empty"):
        F.one_hot(grebe.zeros(0, dtype=grebe.int64))


def test_embedding_errors() -> None:
    m = nn.Embedding(4, 3)
    for bad in (4, -1):
        with pytest.raises(IndexError, match=f"index {bad} is out of range, expected 0 to 3"):
            m(grebe.tensor([0, bad]))
    with pytest.raises(TypeError, match="integers"):
        m(grebe.ones(2))


def test_embedding_from_pretrained() -> None:
    table = grebe.randn(3, 2)
    m = nn.Embedding.from_pretrained(table)
    assert not m.weight.requires_grad and equal(m(grebe.tensor([2])), table[2:])
    with pytest.raises(ValueError, match="2-d Tensor"):
        nn.Embedding.from_pretrained(grebe.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: F.pad(x, (1,)), ValueError, "even number"),
        (lambda x: F.pad(x, (1, 2, 3, 4, 5, 6)), ValueError, "at most 4"),
        (lambda x: F.pad(x, (1.0, 2)), TypeError, "sequence of ints"),
        (lambda x: F.pad(x, (1, 1), "wrap"), ValueError, "mode must be"),
        (lambda x: F.pad(x, (3, 0), "reflect"), RuntimeError, "at most 2"),
        (lambda x: F.pad(x, (-4, 0)), RuntimeError, "takes more"),
        (lambda x: F.glu(x), RuntimeError, "must be even, got 3"),
        (lambda x: F.prelu(x, grebe.ones(2)), RuntimeError, "one per channel"),
        (lambda x: F.relu6(3), TypeError, "must be a Tensor, got int"),
        (lambda x: F.bilinear(x, x, grebe.ones(2, 3, 4)), RuntimeError, "weight .O, I, J."),
    ],
)
def test_functional_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(grebe.ones(2, 3))


@pytest.mark.parametrize(
    "function",
    [
        F.celu, F.hardsigmoid, F.hardswish, F.hardtanh, F.mish, F.relu6, F.selu, F.softsign,
        F.tanhshrink, F.hardshrink, F.softshrink, F.glu, F.normalize,
        lambda x: F.threshold(x, 0.1, -2.0), lambda x: F.prelu(x, grebe.full((1,), 0.3).double()),
        lambda x: F.pad(x, (1, 2, -1, 0)), lambda x: F.pad(x, (1, 2), "reflect"),
        lambda x: F.pad(x, (1, 2), "replicate"), lambda x: F.pad(x, (1, 2), "circular"),
        lambda x: F.cosine_similarity(x, x.flip(0)), lambda x: F.pairwise_distance(x, x.flip(0)),
    ],
)  # fmt: skip
def test_gradients(function: Any) -> None:
    x = grebe.randn(3, 4, dtype=grebe.float64, requires_grad=True)
    assert grebe.autograd.gradcheck(function, (x,))
    assert grebe.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.SELU, nn.ELU,
        nn.CELU, nn.LeakyReLU, nn.Hardtanh, lambda inplace: nn.Threshold(0.1, 2.0, inplace),
    ],
)  # fmt: skip
def test_inplace_activations(layer: Any) -> None:
    x = grebe.randn(3, 4, requires_grad=True)
    y = layer(inplace=False)(x * 1)
    z = x * 1
    out = layer(inplace=True)(z)
    assert out is z and equal(y, z)
    expected = grebe.autograd.grad(y.sum(), x)[0]
    assert equal(grebe.autograd.grad(z.sum(), x)[0], expected)
    assert "inplace=True" in repr(layer(inplace=True))
