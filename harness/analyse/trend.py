"""The test of whether a curve falls: by how much, and how certainly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse import noise
from harness.analyse.level import block_means
from harness.artifacts.curve import Trend

Floats = npt.NDArray[np.float64]

# The accepted rate of flat runs that are called learning, over memories as the prior has them. Noise with a
# memory of 0.95 exceeds it (see ESTIMATOR). A prior with more of it would halve that, and lose a quarter of
# the runs of 12 to 60 points that fall by 30 % in noise of 5 to 10 %.
ERROR_RATE = 0.01
BLOCKS = 128
MIN_POINTS = 8
ESTIMATOR = (
    "Least squares on the means of at most 128 stretches (spikes that came back left out, single points"
    " clipped at 3 deviations of the noise); interval from simulated flat curves with AR(1) noise whose"
    " measured memory is nearest to this curve's, the memory itself being unknown; p_flat from the clearest"
    " of three falling shapes (straight, and two early ones), against the clearest in each simulated curve."
    " Measured on 200 flat runs each of 12 to 100 points: at most 2 % are called falling for a memory up to"
    " 0.5, 5 % for 0.8, 13 % for 0.95, as smoothed losses have it"
)


class Test:
    """A test of one curve against flat ones.

    `steps` and `values` [N] are the points that count for the trend, in order of steps.
    """

    def __init__(self, steps: Floats, values: Floats, resolution: float = 0.0) -> None:
        self.blocks = min(len(values), BLOCKS)
        self.steps, self.values = block_means(steps, self.blocks), block_means(values, self.blocks)
        self._points, self._spread = len(values), values
        share = len(values) / self.blocks
        # Rounding leaves at least this much noise in a mean. No loss is known to more than nine digits.
        self._floor = resolution**2 / 12 / share + (1e-9 * float(np.abs(self.values).max())) ** 2
        self.null = noise.simulate(self.blocks, self._profile(values))
        self.found = noise.measure(self.values[None], self._floor)

    def p_fall(self) -> float:
        """The probability that a flat curve with such noise falls as clearly."""
        return noise.chance(self.null, self.found)

    def p_rise_late(self) -> float:
        """The same probability for a rise towards the end: the curve is reversed."""
        return noise.chance(self.null, noise.measure(self.values[None, ::-1], self._floor))

    def p_rise(self) -> float:
        """The probability that a flat curve rises as clearly, whatever the shape."""
        return noise.chance(self.null, noise.measure(-self.values[None], self._floor))

    def line(self) -> tuple[float, float, float]:
        """(slope per step, its standard error, the half width of a 95 % interval in standard errors)."""
        x = self.steps - self.steps.mean()
        span = float((x * x).sum())
        slope = float((x * self.values).sum() / span) if span else 0.0
        error = float(np.sqrt(self.found.long_run[0] / span)) if span else 0.0
        return slope, error, noise.straight_quantile(self.null, self.found, 0.95)

    def trend(self) -> Trend:
        """The trend as it is reported."""
        slope, error, reach = self.line()
        tenth = max(1, self.blocks // 10)
        start, end = float(self.values[:tenth].mean()), float(self.values[-tenth:].mean())
        scale = (
            float(self.steps[-1] - self.steps[0])
            * self.blocks
            / max(1, self.blocks - 1)
            / (abs(start) or 1.0)
        )
        rest = self._spread - np.interp(
            np.arange(self._points),
            (np.arange(self.blocks) + 0.5) * self._points / self.blocks - 0.5,
            self.values,
        )
        of_mean = float(self.found.long_run[0]) / self.blocks
        own = (
            float(rest.var())
            if self._points > 2 * self.blocks
            else float(self.found.long_run[0]) * _share_of_white(float(self.found.memory[0]))
        )
        return Trend(
            slope_per_1000_steps=1000 * slope,
            slope_low=1000 * (slope - reach * error),
            slope_high=1000 * (slope + reach * error),
            fall=-slope * scale,
            fall_low=-(slope + reach * error) * scale,
            fall_high=-(slope - reach * error) * scale,
            start_loss=start,
            end_loss=end,
            p_flat=self.p_fall(),
            error_rate=ERROR_RATE,
            noise=float(np.sqrt(own)),
            autocorrelation=float(self.found.memory[0]),
            points=self._points,
            effective_points=float(min(self._points, own / of_mean)) if of_mean > 0 else float(self._points),
            estimator=ESTIMATOR,
        )

    def _profile(self, values: Floats) -> Floats | None:
        """The noise's size along the curve: a straight line through its logarithm.

        None if it may be constant.
        """
        jumps = np.abs(np.diff(values))
        known = jumps > 0
        if known.sum() < 20:
            return None
        x = (np.flatnonzero(known) + 1) / len(values) - 0.5
        sizes = np.log(jumps[known])
        centred = x - x.mean()
        slope = float((centred * sizes).sum() / (centred * centred).sum())
        # The logarithm of a normal variable's absolute value has a standard deviation of 1.11.
        if abs(slope) < 2.5 * 1.11 / float(np.sqrt((centred * centred).sum())):
            return None
        return np.exp(np.clip(slope, -4, 4) * ((np.arange(self.blocks) + 0.5) / self.blocks - 0.5))


def _share_of_white(memory: float) -> float:
    """The variance of a point of AR(1) noise over its long-run variance."""
    held = min(max(memory, 0.0), 0.97)
    return (1 - held) / (1 + held)
