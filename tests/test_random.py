"""Generators and distributions."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest

import grebe

N = 200_000


def close_to(values: np.ndarray, mean: float, std: float) -> bool:
    """Mean and spread within five standard errors."""
    error = 5 * std / math.sqrt(values.size)
    return abs(values.mean() - mean) < error and abs(values.std() - std) < 5 * error


# ---- generators ----


def test_same_seed_same_numbers():
    grebe.manual_seed(3)
    first = [grebe.rand(5), grebe.randn(7), grebe.randint(0, 9, (4,)), grebe.randperm(6)]
    grebe.manual_seed(3)
    again = [grebe.rand(5), grebe.randn(7), grebe.randint(0, 9, (4,)), grebe.randperm(6)]
    assert all(grebe.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not grebe.equal(grebe.rand(5), first[0])


def test_draws_do_not_repeat_the_stream():
    values = grebe.cat([grebe.rand(1, dtype=grebe.float64) for _ in range(200)])
    assert len(grebe.unique(values)) == 200


def test_generator_state():
    g = grebe.Generator()
    assert g.initial_seed() == grebe.Generator().initial_seed()
    assert g.manual_seed(5) is g and g.initial_seed() == 5
    grebe.rand(3, generator=g)
    state = g.get_state()
    assert state.dtype == grebe.uint8
    a = grebe.rand(3, generator=g)
    for other in (grebe.Generator().set_state(state), g.set_state(state)):
        assert grebe.equal(a, grebe.rand(3, generator=other))
    twin = pickle.loads(pickle.dumps(g))
    assert grebe.equal(grebe.rand(3, generator=copy.deepcopy(g)), grebe.rand(3, generator=twin))
    with pytest.raises(RuntimeError, match="set_state"):
        g.set_state(grebe.zeros(16))


def test_default_state():
    state = grebe.get_rng_state()
    a = grebe.randn(4)
    grebe.set_rng_state(state)
    assert grebe.equal(a, grebe.randn(4))
    assert grebe.seed() == grebe.initial_seed()


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 0])
def test_extreme_seeds(seed):
    g = grebe.Generator().manual_seed(seed)
    assert g.initial_seed() == seed % 2**64
    assert np.isfinite(grebe.randn(10, generator=g).numpy()).all()
    assert ((grebe.randint(0, 3, (9,), generator=g) >= 0).all()).item()


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed):
    with pytest.raises(RuntimeError, match="manual_seed"):
        grebe.manual_seed(seed)


def test_seed_of_wrong_type():
    with pytest.raises(TypeError, match="manual_seed"):
        grebe.manual_seed("1")
    with pytest.raises(TypeError, match="generator"):
        grebe.rand(2, generator=np.random.default_rng())


def test_take_reserves_whole_blocks():
    g = grebe.Generator().manual_seed(1)
    assert [g.take(n) for n in (1, 4, 5, 0, 2)] == [(1, 0), (1, 4), (1, 8), (1, 16), (1, 16)]


def test_threads_get_their_own_numbers():
    g, taken = grebe.Generator(), []

    def work():
        taken.extend(g.take(4)[1] for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(0, 8000, 4))


# ---- uniform, normal ----


@pytest.mark.parametrize("dtype", [grebe.float32, grebe.float64, grebe.float16, grebe.bfloat16])
def test_rand(dtype):
    x = grebe.rand(N, dtype=dtype)
    values = x.to(grebe.float64).numpy()
    assert x.dtype == dtype and values.min() >= 0 and values.max() < 1
    spacing = 2**-8 if dtype == grebe.bfloat16 else 0
    assert close_to(values + spacing / 2, 0.5, math.sqrt(1 / 12))


@pytest.mark.parametrize("dtype", [grebe.float32, grebe.float64])
def test_randn(dtype):
    values = grebe.randn(N, dtype=dtype).numpy().astype(np.float64)
    assert close_to(values, 0, 1)
    assert abs((values**4).mean() - 3) < 0.2
    inside = (np.abs(values) < 1).mean()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 0.01


def test_neighbours_are_independent():
    for x in (grebe.randn(N), grebe.rand(N) - 0.5):
        values = x.numpy().astype(np.float64)
        for lag in (1, 2, 3, 4, 8, 16):
            r = np.corrcoef(values[lag:], values[:-lag])[0, 1]
            assert abs(r) < 5 / math.sqrt(N)


@pytest.mark.parametrize("make", [grebe.rand, grebe.randn])
def test_sizes_and_options(make):
    assert make(2, 3).shape == make((2, 3)).shape == make([2, 3]).shape == (2, 3)
    assert make(size=(2, 3)).shape == (2, 3)
    assert make(()).shape == make().shape == ()
    assert make(0, 3).shape == (0, 3)
    assert make(2, requires_grad=True).requires_grad
    with pytest.raises(RuntimeError, match="negative"):
        make(-1)
    with pytest.raises(TypeError, match="size"):
        make(2.5)
    with pytest.raises(TypeError, match="size"):
        make(2, size=(2,))
    with pytest.raises(RuntimeError, match="floating point"):
        make(2, dtype=grebe.int64)
    with pytest.raises(RuntimeError, match="cuda"):
        make(2, device="cuda")


def test_prefix_does_not_depend_on_length():
    short = grebe.rand(10, generator=grebe.Generator())
    long = grebe.rand(1001, generator=grebe.Generator())
    assert grebe.equal(short, long[:10])


def test_threads_do_not_change_numbers():
    grebe.set_num_threads(1)
    one = grebe.randn(N, generator=grebe.Generator())
    grebe.set_num_threads(4)
    assert grebe.equal(one, grebe.randn(N, generator=grebe.Generator()))


def test_like():
    x = grebe.zeros(4, 5, dtype=grebe.float64).T
    assert grebe.rand_like(x).shape == (5, 4) and grebe.randn_like(x).dtype == grebe.float64
    assert grebe.rand_like(x).stride() == x.stride()
    assert grebe.randn_like(x, dtype=grebe.float32).dtype == grebe.float32
    k = grebe.randint_like(grebe.zeros(50, dtype=grebe.int32), 3)
    assert k.dtype == grebe.int32 and set(k.tolist()) == {0, 1, 2}
    assert grebe.randint_like(x, 5, 7).max().item() <= 6


def test_normal():
    assert close_to(grebe.normal(3.0, 2.0, (N,)).numpy(), 3, 2)
    assert grebe.normal(0, 1, size=(2, 3), dtype=grebe.float64).dtype == grebe.float64
    mean = grebe.arange(4.0).reshape(4, 1)
    x = grebe.normal(mean, grebe.full((N // 10,), 0.5)).numpy()
    assert x.shape == (4, N // 10) and np.abs(x.mean(1) - [0, 1, 2, 3]).max() < 0.05
    assert grebe.normal(mean, 0.0).tolist() == mean.tolist()
    assert grebe.normal(2.0, grebe.zeros(3)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="std"):
        grebe.normal(0.0, -1.0, (2,))
    with pytest.raises(RuntimeError, match="std"):
        grebe.normal(mean, grebe.tensor([-1.0]))
    with pytest.raises(RuntimeError, match="broadcast"):
        grebe.normal(grebe.zeros(2), grebe.zeros(3))
    with pytest.raises(TypeError, match="size"):
        grebe.normal(0.0, 1.0)


# ---- integers ----


def test_randint():
    x = grebe.randint(-2, 3, (N,))
    assert x.dtype == grebe.int64
    counts = np.bincount(x.numpy() + 2)
    assert len(counts) == 5 and np.abs(counts - N / 5).max() < 5 * math.sqrt(N / 5)
    assert grebe.randint(3, (2, 2)).shape == (2, 2)
    assert grebe.randint(3, size=(4,)).max().item() < 3
    assert grebe.randint(low=0, high=2, size=(4,), dtype=grebe.float32).dtype == grebe.float32
    assert grebe.randint(0, 1, (0,)).shape == (0,)
    grebe.randint(-(2**63), 2**63 - 1, (3,))


def test_randint_errors():
    with pytest.raises(RuntimeError, match="low"):
        grebe.randint(3, 3, (2,))
    with pytest.raises(RuntimeError, match="uint8"):
        grebe.randint(0, 300, (2,), dtype=grebe.uint8)
    with pytest.raises(RuntimeError, match="int64"):
        grebe.randint(0, 2**70, (2,))
    with pytest.raises(TypeError, match="randint"):
        grebe.randint(3)
    with pytest.raises(TypeError, match="ints"):
        grebe.randint(0.5, 3, (2,))


def test_randperm():
    p = grebe.randperm(1000)
    assert p.dtype == grebe.int64 and sorted(p.tolist()) == list(range(1000))
    assert p.tolist() != list(range(1000))
    assert grebe.randperm(0).shape == (0,)
    first = [grebe.randperm(4)[0].item() for _ in range(2000)]
    assert np.abs(np.bincount(first) - 500).max() < 5 * math.sqrt(500)
    with pytest.raises(RuntimeError, match="randperm"):
        grebe.randperm(-1)
    with pytest.raises(RuntimeError, match="fit"):
        grebe.randperm(1000, dtype=grebe.uint8)


# ---- draws from tensors ----


def test_bernoulli():
    p = grebe.tensor([0.0, 0.3, 1.0]).expand(N, 3)
    means = grebe.bernoulli(p).numpy().mean(0)
    assert means[0] == 0 and means[2] == 1 and abs(means[1] - 0.3) < 0.01
    assert grebe.bernoulli(grebe.zeros(3, dtype=grebe.float64)).dtype == grebe.float64
    assert abs(grebe.zeros(N).bernoulli(0.7).mean().item() - 0.7) < 0.01
    for bad in ([1.5], [-0.1], [float("nan")]):
        with pytest.raises(RuntimeError, match="probabilities"):
            grebe.bernoulli(grebe.tensor(bad))
    with pytest.raises(RuntimeError, match="floating"):
        grebe.bernoulli(grebe.tensor([1]))


@pytest.mark.parametrize("replacement", [False, True])
def test_multinomial(replacement):
    weights = grebe.tensor([1.0, 0.0, 3.0, 6.0])
    rows = weights.expand(20000, 4)
    x = grebe.multinomial(rows, 2, replacement).numpy()
    assert x.shape == (20000, 2) and x.dtype == np.int64
    first = np.bincount(x[:, 0], minlength=4) / 20000
    assert np.abs(first - [0.1, 0, 0.3, 0.6]).max() < 0.02
    assert (x != 1).all()
    if not replacement:
        assert (x[:, 0] != x[:, 1]).all()
        after_3 = x[x[:, 0] == 3, 1]
        assert abs((after_3 == 2).mean() - 0.75) < 0.02
    assert weights.multinomial(1).shape == (1,)


def test_multinomial_errors():
    with pytest.raises(RuntimeError, match="replacement"):
        grebe.multinomial(grebe.tensor([1.0, 0.0]), 2)
    for bad in ([0.0, 0.0], [-1.0, 2.0], [float("inf"), 1.0], [float("nan"), 1.0]):
        with pytest.raises(RuntimeError, match="weight"):
            grebe.multinomial(grebe.tensor(bad), 1, True)
    with pytest.raises(RuntimeError, match="shape"):
        grebe.multinomial(grebe.ones(2, 2, 2), 1)
    with pytest.raises(RuntimeError, match="num_samples"):
        grebe.multinomial(grebe.ones(2), 0)
    with pytest.raises(RuntimeError, match="floating"):
        grebe.multinomial(grebe.tensor([1, 2]), 1)
    assert grebe.multinomial(grebe.ones(0, 3), 1).shape == (0, 1)


def test_poisson():
    x = grebe.poisson(grebe.full((N,), 2.5)).numpy()
    assert abs(x.mean() - 2.5) < 0.03 and abs(x.var() - 2.5) < 0.06
    with pytest.raises(RuntimeError, match="rates"):
        grebe.poisson(grebe.tensor([-1.0]))


# ---- in place ----


def test_uniform_and_normal_in_place():
    x = grebe.empty(N)
    assert x.uniform_(-2, 4) is x
    assert x.min().item() >= -2 and x.max().item() < 4 and close_to(x.numpy(), 1, 6 / 12**0.5)
    assert close_to(x.normal_(1, 3).numpy(), 1, 3)
    assert x.uniform_(2, 2).tolist()[:3] == [2, 2, 2]
    with pytest.raises(RuntimeError, match="std"):
        x.normal_(0, -1)
    for bad in ((1, 0), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(RuntimeError, match="uniform_"):
            x.uniform_(*bad)
    with pytest.raises(RuntimeError, match="floating"):
        grebe.zeros(3, dtype=grebe.int64).uniform_()


def test_strided_targets():
    base = grebe.zeros(6, 4)
    base.T[1:3].uniform_(1, 2)
    columns = base.numpy()
    assert (columns[:, 1:3] >= 1).all() and (columns[:, [0, 3]] == 0).all()
    grebe.zeros(0, 3).normal_()
    with pytest.raises(RuntimeError, match="normal_"):
        grebe.zeros(1).expand(5).normal_()


def test_other_distributions_in_place():
    x = grebe.empty(N, dtype=grebe.float64)
    assert close_to(x.exponential_(2.0).numpy(), 0.5, 0.5)
    logs = x.log_normal_(0.5, 0.25).log().numpy()
    assert close_to(logs, 0.5, 0.25)
    assert abs(np.median(x.cauchy_(3, 2).numpy()) - 3) < 0.05
    geometric = x.geometric_(0.25).numpy()
    assert geometric.min() == 1 and abs(geometric.mean() - 4) < 0.05
    assert abs(x.bernoulli_(0.2).mean().item() - 0.2) < 0.01
    assert grebe.zeros(3, dtype=grebe.int64).bernoulli_(1.0).tolist() == [1, 1, 1]
    assert x[:3].bernoulli_(grebe.tensor([0.0, 1.0, 0.0])).tolist() == [0, 1, 0]
    for name, argument in (("exponential_", 0), ("cauchy_", 0), ("geometric_", 0)):
        with pytest.raises((RuntimeError, TypeError), match=name):
            getattr(x, name)(*((argument,) if name != "cauchy_" else (0, argument)))


def test_random_in_place():
    x = grebe.zeros(1000, dtype=grebe.uint8).random_()
    assert x.max().item() > 200
    assert set(x.random_(3).tolist()) == {0, 1, 2}
    assert set(x.random_(5, 7).tolist()) == {5, 6}
    assert grebe.zeros(100).random_().max().item() <= 2**24
    assert set(grebe.zeros(100, dtype=grebe.bool).random_().tolist()) == {True, False}
    with pytest.raises(RuntimeError, match="fit"):
        x.random_(300)


def test_in_place_and_gradients():
    leaf = grebe.zeros(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf.uniform_()
    with grebe.no_grad():
        leaf.uniform_()
    y = leaf * 2
    product = y * y
    y.normal_()
    with pytest.raises(RuntimeError):
        product.sum().backward()
