"""A measurement's timeline as text or as an image: one line per processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hetrl.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hetrl.measurement import SegmentTiming

WORK = "█▓"  # segments side by side alternate, so that their borders show
TRANSFER = "░"
MIN_BAR = 10


def gantt_text(segments: Sequence[SegmentTiming], width: int = 80) -> str:
    """Lines of at most `width` characters (more where the names need it), without colour.

    A segment that several processors share is drawn on each; its transfers are drawn first.
    """
    if not segments:
        return "no segments"
    names = _processors(segments)
    label = max(map(len, names))
    bar = max(MIN_BAR, width - label - 3)
    end_ms = max(segment.end_ms for segment in segments) or 1.0
    lines = []
    for name in names:
        cells = [" "] * bar
        mine = [segment for segment in segments if name in segment.processors]
        for number, segment in enumerate(mine):
            first, moved, last = (
                round(bar * ms / end_ms)
                for ms in (segment.start_ms, segment.start_ms + segment.transfer_ms, segment.end_ms)
            )
            first = min(first, bar - 1)
            for cell in range(first, max(last, first + 1)):
                cells[cell] = TRANSFER if cell < moved else WORK[number % len(WORK)]
        lines.append(f"{name:<{label}} |{''.join(cells)}|")
    axis = f"{end_ms:.3f} ms"
    lines.append(f"{'':<{label}}  0{axis:>{bar - 1}}")
    return "\n".join(lines)


def gantt_rgb(
    segments: Sequence[SegmentTiming], width: int = 800, height: int = 240, title: str = ""
) -> npt.NDArray[np.uint8]:
    """The same as an image, height x width x 3.

    :raises MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing a timeline", "plots") from None
    import numpy as np

    dpi = 100
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = _processors(segments)
    for line, name in enumerate(names):
        mine = [segment for segment in segments if name in segment.processors]
        for number, segment in enumerate(mine):
            _draw(axes, segment, line, ("#3b6fb6", "#7da7d9")[number % 2])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_xlim(left=0)
    axes.set_title(title)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])


def _draw(axes: Any, segment: SegmentTiming, line: int, color: str) -> None:
    moved = min(segment.transfer_ms, segment.end_ms - segment.start_ms)
    axes.barh(line, moved, left=segment.start_ms, color="#c9c9c9")
    axes.barh(line, segment.end_ms - segment.start_ms - moved, left=segment.start_ms + moved, color=color)


def _processors(segments: Sequence[SegmentTiming]) -> list[str]:
    return list(dict.fromkeys(name for segment in segments for name in segment.processors))
