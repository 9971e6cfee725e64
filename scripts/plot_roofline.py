"""Draw the figures of bench/results/one_batch_h200.jsonl under the roof of an H200: docs_new/images/roofline_h200.png.

A step that does few products for each byte it reads can be as fast as the memory at best: the slope. One that does many
can be as fast as the matrix units: the ceiling. Bytes and products are those that the step cannot do without.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench import results
from slipstream.bench.devices import DEVICE_SPEEDS, DeviceSpeed
from slipstream.bench.results_page import split_latest
from slipstream.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "one_batch_h200.jsonl"
PLOT = REPOSITORY / "docs_new" / "images" / "roofline_h200.png"
DEVICE = "NVIDIA H200"
STYLES = {"decode": ("o", "tab:blue"), "decode with a draft": ("^", "tab:orange"), "prefill": ("s", "tab:green")}


@dataclass(frozen=True)
class Point:
    """One case: where it stands, and what it is called."""

    flops_per_byte: float
    tflops: float
    kind: str  # key of STYLES
    label: str


def points_of(found: Sequence[results.Result]) -> list[Point]:
    """The latest figure of each case on the one device, where it is known what a step has to do."""
    latest = [result for result in split_latest(found)[0] if result.machine == DEVICE and result.details.get("work")]
    points = []
    for result in latest:
        work = result.details["work"]
        points.append(
            Point(
                flops_per_byte=work["flops"] / work["bytes"],
                tflops=work["flops"] / work["seconds"] / 1e12,
                kind=kind_of(result),
                label=result.case.partition(":")[0].replace("acceptance length", "length"),
            )
        )
    return points


def kind_of(result: results.Result) -> str:
    if "per token" not in result.case.partition(":")[2]:
        return "prefill"
    return "decode with a draft" if result.details["num_drafts"] else "decode"


def roof_tflops(flops_per_byte: float, speed: DeviceSpeed) -> float:
    """What the device reaches at best.

    >>> roof_tflops(1.0, DeviceSpeed(4000.0, 800.0)), roof_tflops(1000.0, DeviceSpeed(4000.0, 800.0))
    (4.0, 800.0)
    """
    assert speed.bf16_tflops is not None
    return min(flops_per_byte * speed.bandwidth_gbs / 1000, speed.bf16_tflops)


def draw(points: Sequence[Point], speed: DeviceSpeed, path: Path) -> None:
    """Write the picture. The legend has each point's number, name and its share of the roof above it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    low, high = 0.5, 4 * max(point.flops_per_byte for point in points)
    assert speed.bf16_tflops is not None
    ridge = speed.bf16_tflops * 1000 / speed.bandwidth_gbs
    knots = [low, ridge, max(high, 4 * ridge)]
    axes.plot(knots, [roof_tflops(x, speed) for x in knots], color="black", linewidth=1.2)
    slope, ceiling = f"{speed.bandwidth_gbs / 1000:g} TB/s", f"{speed.bf16_tflops:g} TFLOP/s in bf16"
    axes.annotate(slope, (6.0, roof_tflops(6.0, speed)), xytext=(-10, 4), textcoords="offset points", ha="right")
    axes.annotate(ceiling, (knots[-1], speed.bf16_tflops), xytext=(0, 6), textcoords="offset points", ha="right")
    for number, point in enumerate(points, start=1):
        marker, color = STYLES[point.kind]
        share = point.tflops / roof_tflops(point.flops_per_byte, speed)
        axes.scatter(
            point.flops_per_byte, point.tflops, marker=marker, color=color, s=36, zorder=3,
            label=f"{number}  {point.label}: {share:.0%} of the roof",
        )  # fmt: skip
        axes.annotate(str(number), (point.flops_per_byte, point.tflops), xytext=(6, -10), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="products (FLOP) per byte that has to be read", ylabel="TFLOP/s")
    axes.grid(True, which="both", linewidth=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(source: Path = RESULTS, target: Path = PLOT) -> int:
    try:
        points = points_of(results.read(source)) if source.is_file() else []
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not points:
        print(f"{source.name} has no figure of one {DEVICE}: nothing to draw")
        return 0
    draw(points, DEVICE_SPEEDS[DEVICE], target)
    print(f"{target.name}: {len(points)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
