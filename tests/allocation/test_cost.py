"""What bits cost, of networks whose costs are known."""

import jax
import pytest

from adadfq_jax.allocation.budget import operations, read_budget
from adadfq_jax.allocation.cost import ACTIVATION, WEIGHT, costs_of
from adadfq_jax.errors import ConfigError
from adadfq_jax.models import registry
from adadfq_jax.models.network import flatten
from adadfq_jax.models.size import measure_network
from adadfq_jax.models.sums import with_quantized_sums

MODULE = registry.build("resnet8_cifar", 10)
COSTS = costs_of(MODULE, 8)


def test_elements_and_multiplications():
    elements = {(item.layer, item.kind): item.elements for item in COSTS.items}
    assert elements["stem_conv", WEIGHT] == 3 * 3 * 3 * 16
    assert elements["classifier", WEIGHT] == 64 * 10
    assert elements["stem_relu", ACTIVATION] == 8 * 8 * 16
    assert elements["stage2_block1/relu1", ACTIVATION] == 4 * 4 * 32
    assert sum(product.macs for product in COSTS.products) == measure_network(MODULE, 8).macs


def test_bit_operations_by_what_a_layer_reads():
    read = {product.layer: (product.source, product.bits) for product in COSTS.products}
    assert read["stem_conv"] == (None, 8)  # pixels
    assert read["stage1_block1/conv1"][0] == "stem_relu"
    assert read["stage2_block1/conv1"][0] == "stage1_block1/relu2"
    assert read["classifier"] == (None, 32)  # an average
    threes = {(item.layer, item.kind): 3 for item in COSTS.items}
    assert COSTS.bit_operations(threes) == operations(COSTS, 3)


def test_depthwise_convolutions():
    module = registry.build("mobilenet_v2_x0.25", 10)
    costs = costs_of(module, 32)
    kernels = flatten(registry.initial_variables(module, 32, jax.random.key(0))["params"])
    for item in costs.of((WEIGHT,)):
        assert item.elements == kernels[f"{item.layer}/kernel"].size
    groups = costs.shared(["depthwise"])
    assert len(groups) == 17
    for (before, _), (depthwise, _) in groups:
        assert kernels[f"{depthwise}/kernel"].shape[:3] == (3, 3, 1)
        assert kernels[f"{before}/kernel"].shape[-1] == kernels[f"{depthwise}/kernel"].shape[-1]


def test_the_inputs_of_a_sum():
    assert COSTS.shared(["sums"]) == []  # one of them is not quantized
    costs = costs_of(with_quantized_sums(MODULE, 8), 8)
    assert set(costs.shared(["sums"])[0]) == {
        ("stage1_block1/norm2_quantized", ACTIVATION),
        ("stem_relu", ACTIVATION),
    }


@pytest.mark.parametrize(
    ("text", "measure", "of", "says"),
    [
        ("1.5", "size", None, "1.5 is below the smallest choice, 2 bits"),
        ("9", "size", None, "9 is above the largest choice, 8 bits"),
        ("1kB", "size", None, "1kB is below the smallest choice, 2 bits, which takes .* bytes"),
        ("1T", "bitops", None, "1T is above the largest choice, 8 bits, which takes .*M"),
        ("4GB", "size", "both", "4GB is of the size of weights"),
        ("4M", "size", None, "4M bit operations needs measure=bitops"),
        ("4", "bitops", "weights", "needs budget_of=both"),
        ("four", "size", None, "written 4.0 .* not 'four'"),
        ("4", "bitop", None, "unknown measure 'bitop': did you mean bitops"),
        ("4", "size", "weight", "unknown budget_of 'weight': did you mean weights"),
    ],
)
def test_bad_budgets(text, measure, of, says):
    with pytest.raises(ConfigError, match=says):
        read_budget(text, measure, of, COSTS, 1000, (2, 4, 8))


def test_budgets_in_units_are_bits_as_well():
    kernels = sum(item.elements for item in COSTS.of((WEIGHT,)))
    sized = read_budget(f"{1000 + kernels // 2}B", "size", None, COSTS, 1000, (2, 4, 8))
    assert (sized.of, sized.level) == ("weights", pytest.approx(4, rel=1e-3))
    counted = read_budget(f"{operations(COSTS, 3) / 1e6:f}M", "bitops", None, COSTS, 0, (2, 4, 8))
    assert (counted.of, counted.level) == ("both", pytest.approx(3))
