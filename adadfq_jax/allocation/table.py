"""An allocation as a plain table."""

from typing import Any

from adadfq_jax.allocation.cost import ACTIVATION, WEIGHT

_ROUNDING = 1e-6  # of an average
_HEADINGS = {WEIGHT: "kernels", ACTIVATION: "activations"}


def allocation_table(found: Any) -> str:
    """Formats an allocation: a line for each kernel and activation, then what all of it means.

    Args:
      found: the `Allocation`.
    """
    width = max(len(item.layer) for item in found.items) + 2
    lines = []
    macs = {product.layer: product for product in found.costs.products}
    bits = found.by_name(found.bits)
    for kind in (WEIGHT, ACTIVATION):
        rows = [
            (item, found.columns.index(chosen), row)
            for item, chosen, row in zip(found.items, found.bits, found.distances, strict=True)
            if item.kind == kind
        ]
        if not rows:
            continue
        total = sum(item.elements * bits[item.layer, kind] for item, *_ in rows)
        bitops = found.budget.measure == "bitops" and kind == WEIGHT
        heading = f"{_HEADINGS[kind]:<{width}}{'bits':>6}{'kB':>10}{'share':>9}{'distance':>12}"
        lines += ["", heading + (f"{'Mbitops':>12}" if bitops else "")]
        for item, column, row in rows:
            size = item.elements * bits[item.layer, kind]
            line = (
                f"{item.layer:<{width}}{bits[item.layer, kind]:>6}{size / 8000:>10,.2f}"
                f"{size / total:>9.1%}{row[column]:>12.2e}"
            )
            if bitops:
                product = macs[item.layer]
                read = product.bits if product.source is None else bits[product.source, ACTIVATION]
                line += f"{product.macs * read * bits[item.layer, kind] / 1e6:>12,.1f}"
            lines.append(line)
    return "\n".join([*lines[1:], "", *_summary(found)])


def _summary(found: Any) -> list[str]:
    uniform = found.uniform(found.uniform_bits)
    rows = []
    for name, bits in (("chosen", found.bits), (f"uniform, {found.uniform_bits} bits", uniform)):
        words = [f"distance {found.predicted(bits):.3g}"]
        # As where some layers are fixed at more bits than the budget's average.
        if found.level_of(bits) > found.budget.level + _ROUNDING:
            words.append("above the budget")
        words += [
            f"{found.average(kind, bits):.2f} bits of {_HEADINGS[kind]}"
            for kind in (WEIGHT, ACTIVATION)
            if any(item.kind == kind for item in found.items)
        ]
        if (size := found.packed_bytes(bits)) is not None:
            words.append(f"{size:,} bytes of packed numbers")
        if found.budget.measure == "bitops":
            operations = found.costs.bit_operations(found.by_name(bits))
            words.append(f"{operations / 1e6:,.1f} M bit operations an image")
        rows.append(f"{name:<22}{', '.join(words)}")
    rows.append(f"{'measured on':<22}{found.images} {found.kinds} images, one layer at a time")
    if found.correlation is not None:
        rows.append(
            f"{'sum and whole':<22}rank correlation {found.correlation:.2f} over "
            f"{len(found.compared)} random allocations within the budget"
        )
    return rows
