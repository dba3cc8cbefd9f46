"""Colours of the report in a light and a dark theme: of the page and its charts, and ramps that colour-blind readers
and printers tell apart."""

from __future__ import annotations

import numpy as np

PAGE = {
    # (light theme, dark theme)
    "paper": ("#faf9f6", "#121417"),
    "surface": ("#ffffff", "#1a1d22"),
    "ink": ("#17191d", "#ece9e3"),
    "soft": ("#565c68", "#a7adb9"),
    "line": ("#e2dfd8", "#30343c"),
    "grid": ("#ecebe6", "#262a31"),
    "found": ("#0059a6", "#6db8ff"),
    "found-soft": ("#dcebf8", "#19324a"),
    "best": ("#c24a00", "#ff9d5c"),
    "uniform": ("#4f5663", "#b4bbc8"),
    "dot": ("#7f9cb8", "#6c8299"),
    "code": ("#f1efea", "#22262d"),
}
"""Colours by what they are for; no two names share one, so that a colour in a chart tells its name."""
RAMPS = {
    # From the few to the many, one hue each, so that lightness alone tells them apart. (light theme, dark theme)
    "bits": (("#e4eef8", "#7fb2dd", "#2b6cb0", "#0f2f57"), ("#1e2d40", "#2f6297", "#6ba8e0", "#d6e8fb")),
    "rank": (("#f3e9f6", "#c79ad3", "#8a4a9e", "#471a57"), ("#33233a", "#74478a", "#bb8acb", "#f1def6")),
    "damage": (("#fdf0dc", "#f2b562", "#c9661b", "#6b2506"), ("#38291a", "#8a4f1c", "#dc8f45", "#fde3c2")),
}
DAMAGE_STEPS = 6
ORIGINS = ("#0072b2", "#d55e00", "#009e73", "#a3478b", "#8a6d00", "#3d4a5c", "#c0392b", "#5b53b8")
"""Categories, after Okabe and Ito (2008), darkened for 3:1 against white; shapes tell them apart as well."""
ORIGINS_DARK = ("#56b4e9", "#ff9d5c", "#3fd0a4", "#e39bd0", "#f0d34a", "#a9b7cc", "#ff8a7a", "#b1aaff")
INK, PAPER = "#000000", "#ffffff"
BRIGHT = 0.45
"""Brightness of a ground, from 0 to 1, above which text on it is black."""


def get_palette(*, dark: bool = False) -> dict[str, str]:
    """Colours of the page, of origins (`o-0`, ...) and of the damage ramp (`damage-0`, ...) in a theme, by name."""
    colors = {name: pair[dark] for name, pair in PAGE.items()}
    colors |= {f"o-{i}": color for i, color in enumerate(ORIGINS_DARK if dark else ORIGINS)}
    return colors | {
        f"damage-{i}": color for i, color in enumerate(make_ramp("damage", DAMAGE_STEPS, dark=dark))
    }


def make_ramp(name: str, steps: int, *, dark: bool = False) -> list[str]:
    """So many colours of a ramp, from its first to its last, evenly apart; a single one from its middle."""
    stops = np.array([_parse_channels(color) for color in RAMPS[name][dark]])
    places = np.linspace(0, len(stops) - 1, steps) if steps > 1 else [len(stops) // 2]
    mixed = np.stack([np.interp(places, range(len(stops)), channel) for channel in stops.T], axis=1)
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in color) for color in mixed]


def choose_text_color(color: str) -> str:
    """Black or white, for text on a ground of this colour; by its brightness after ITU-R BT.601."""
    red, green, blue = _parse_channels(color)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > BRIGHT else PAPER


def _parse_channels(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
