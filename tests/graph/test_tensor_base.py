import copy

import pytest
import torch

from sgquant_optuna.graph.tensor_base import WrapperTensor


class Tens(WrapperTensor):
    """Whole tens of small numbers; a sum stays one."""

    @staticmethod
    def __new__(cls, tens):
        self = cls._wrap(tens.shape)
        self.tens = tens
        return self

    def dense(self):
        return 10.0 * self.tens

    def extra_repr(self):
        return "tens"

    @classmethod
    def _compute(cls, func, args, kwargs):
        if func is torch.add and args and all(isinstance(arg, cls) for arg in args):
            return cls(args[0].tens + args[1].tens)
        return NotImplemented


@pytest.fixture
def x():
    return Tens(torch.tensor([[1.0, 2.0]]))


def test_a_derived_tensor_has_shape_type_and_device(x):
    assert isinstance(x, torch.Tensor)
    assert (x.shape, len(x), x.dtype, x.device.type) == ((1, 2), 1, torch.float32, "cpu")
    assert not x.requires_grad
    assert repr(x) == "Tens(shape=(1, 2), tens)"


def test_a_call_that_the_form_can_answer_stays_in_it(x):
    found = torch.add(x, x)
    assert isinstance(found, Tens)
    assert found.tens.tolist() == [[2.0, 4.0]]


def test_any_other_call_sees_dense_values(x):
    assert (x + 1).tolist() == [[11.0, 21.0]]
    assert torch.cat([x, torch.ones(1, 2)]).tolist() == [[10.0, 20.0], [1.0, 1.0]]
    assert torch.add(input=torch.ones(1, 2), other=x).tolist() == [[11.0, 21.0]]


def test_copies_of_models_share_it(x):
    assert copy.deepcopy({"x": x})["x"] is x
