from __future__ import annotations

import pytest

from froude.core.errors import FroudeError, UnknownNameError
from froude.timing.constants import default_constants
from froude.timing.stack import find_stack, stack_names


def test_every_mechanism_has_its_constants_and_every_constant_a_source() -> None:
    constants = default_constants()
    for entry in constants.table.values():
        assert len(entry.source) > 8
    for name in stack_names():
        stack = find_stack(name)
        assert stack.source
        for constant in (
            f"host.{stack.host}.kernel_s",
            f"host.{stack.host}.collective_s",
            f"fusion.{stack.fusion}.traffic",
            f"exposed.tensor.{stack.tensor_overlap}",
        ):
            assert constants[constant] >= 0
        assert stack.attention in constants.structured("attention.kernels")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="megatron"):
        find_stack("megatorn")
    with pytest.raises(FroudeError, match="flash-2"):
        find_stack("megatron").but(attention="flash2")
    with pytest.raises(UnknownNameError, match=r"gemm\.ramp_k"):
        default_constants()["gemm.ramp"]


def test_generations_follow_the_canonical_name() -> None:
    constants = default_constants()
    assert constants.generation("a100-sxm-80gb") == "ampere"
    assert constants.generation("h100-sxm") == "hopper"
    assert constants.generation("gb200") == "blackwell"
    assert constants.generation("rtx-pro-6000") == "blackwell-gddr"
    assert constants.generation("tpu-v5p") == "tpu"
    assert constants.generation("trainium1") == "other"


def test_a_calibration_replaces_values_and_says_so() -> None:
    calibrated = default_constants().but({"clock.ampere": 0.9}, "two runs")
    assert calibrated["clock.ampere"] == 0.9
    assert "two runs" in calibrated.source("clock.ampere")
    assert default_constants()["clock.ampere"] != 0.9
