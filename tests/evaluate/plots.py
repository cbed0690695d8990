"""The picture of each rule's page: its simulated example, and where the occurrence stood. SVG, the same every time."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np

from esp_ingest.model import SIGNAL_ROW, SIGNALS, FloatArray
from tests.evaluate.examples import EXAMPLES, Shown, play

FOLDER = Path(__file__).parents[2] / "docs" / "diagnostics"
MAX_BYTES = 60_000
_UNITS = {signal.name: signal.unit for signal in SIGNALS} | {"current_imbalance": "%"}
_LINE, _STOOD, _ONSET = "#1f4e79", "#d9534f", "#888888"


def draw_all() -> Iterator[str]:
    FOLDER.mkdir(exist_ok=True)
    for rule in EXAMPLES:
        path = FOLDER / f"{rule}.svg"
        draw(rule, path)
        assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"
        yield f"{path.relative_to(FOLDER.parent.parent)}: {path.stat().st_size} bytes"


def draw(rule: str, path: Path) -> None:
    example, shown = EXAMPLES[rule], play(rule)
    mpl.use("svg")
    from matplotlib import pyplot  # after the backend was chosen

    with mpl.rc_context({"svg.hashsalt": rule, "svg.fonttype": "none", "font.size": 8, "axes.grid": True}):
        height = 0.5 + 1.3 * len(example.panels)
        figure, axes = pyplot.subplots(len(example.panels), 1, sharex=True, figsize=(7, height), squeeze=False)
        first = max(0.0, example.onset_hours - (36 if example.hours > 48 else 3))
        for axis, name in zip(axes[:, 0], example.panels, strict=True):
            some = np.flatnonzero(shown.hours >= first)
            some = some[:: max(1, len(some) // 250)]
            axis.plot(shown.hours[some], _column(shown, name)[some], color=_LINE, linewidth=0.9)
            axis.set_ylabel(f"{name}\n{_UNITS[name]}")
            axis.axvline(example.onset_hours, color=_ONSET, linestyle=":", linewidth=1)
            axis.grid(alpha=0.3)
            for row in shown.occurrences:
                end = example.hours if row.cleared_us is None else shown.hour_of(row.cleared_us)
                axis.axvspan(shown.hour_of(row.raised_us), end, color=_STOOD, alpha=0.18, linewidth=0)
        axes[-1, 0].set_xlabel("hours; dotted: onset; shaded: the occurrence stood")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    # Matplotlib ends lines of paths with a space.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _column(shown: Shown, name: str) -> FloatArray:
    if name in SIGNAL_ROW:
        return np.asarray(shown.readings.values[SIGNAL_ROW[name]])
    return np.array([json.loads(text)[name] for text in shown.readings.extra.values()], float)
