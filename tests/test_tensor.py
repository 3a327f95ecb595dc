"""Tensors among Python's and NumPy's own numbers: nothing leaves the funnel unseen."""

import numpy as np
import pytest

import precsim as ps


def test_a_tensor_becomes_an_array_where_that_is_said_and_nowhere_else():
    """What NumPy computes is neither rounded nor seen by anybody."""
    t = ps.tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=r"try t\.numpy\(\)"):
        np.asarray(t)
    with pytest.raises(TypeError, match="ufunc"):
        np.add(t, np.ones(2))
    assert (np.ones(2) + t).format.name == "fp32"
    assert len(t) == 2


def test_a_shape_is_given_as_numpy_takes_it():
    x = ps.tensor(np.arange(6.0), requires_grad=True)
    for y in (x.reshape(2, 3), x.reshape((2, 3)), x.reshape(-1, 3)):
        np.testing.assert_array_equal(y.numpy(), np.arange(6.0).reshape(2, 3))
    assert x.reshape(2, 3).reshape(-1).shape == x.reshape((2, 3)).reshape((-1,)).shape == (6,)
    with pytest.raises(ValueError, match=r"shape \(4,2\)"):
        x.reshape((4, 2))


def test_a_tensor_of_one_element_is_as_true_as_its_number():
    assert not ps.tensor(0.0)
    assert ps.tensor([[-2.0]])
    assert float(ps.tensor(1.5)) == 1.5
    with pytest.raises(ValueError, match="one element"):
        bool(ps.tensor([0.0, 1.0]))
