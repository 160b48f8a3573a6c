"""What tests/conftest.py and pyproject.toml promise to every other test."""

import os
import socket

import pytest
import torch
from jaxtyping import TypeCheckError
from pytest_socket import SocketBlockedError

from medvlm_dpo.objectives.contrastive import dpo


def test_the_network_is_off():
    with pytest.warns(UserWarning, match="tried to use socket"), pytest.raises(SocketBlockedError):
        socket.create_connection(("localhost", 9), timeout=0.1)


def test_the_model_hub_is_off():
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_torch_has_one_thread():
    assert torch.get_num_threads() == 1


def test_shapes_are_checked_when_an_objective_is_called():
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(TypeCheckError):
        dpo(one, two, one, one, beta=0.1)
