"""How long nodes stay: session lengths drawn from a distribution, given by its mean or median.

| name          | shape                     | where it was measured                      |
|---------------|---------------------------|--------------------------------------------|
| `exponential` | none: memoryless          | the usual assumption                       |
| `weibull`     | k; below 1 many are short | file sharing, with k between 0.3 and 0.6   |
| `lognormal`   | sigma of the logarithm    | file sharing; fits about as well           |
| `fixed`       | none                      | nowhere: all sessions are alike            |

Source of the shapes: Stutzbach and Rejaie, "Understanding Churn in Peer-to-Peer Networks", 2006.

Who looks at a network at a random moment meets long sessions more often than they begin, and meets
them somewhere in their middle. `residual` draws how long such a node still stays, so that a
simulation need not wait until its churn has settled.
"""

import math
import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["exponential", "weibull", "lognormal", "fixed"]
KINDS: Final = ("exponential", "weibull", "lognormal", "fixed")


@dataclass(frozen=True, slots=True)
class Sessions:
    """A distribution of session lengths.

    Args:
        kind: its family.
        scale: Weibull's lambda, the lognormal's exp(mu), the exponential's mean, or the length.
        shape: see the table above; ignored where it means nothing.
    """

    kind: Kind
    scale: float
    shape: float = 1.0

    @classmethod
    def with_mean(cls, kind: Kind, mean: float, shape: float = 1.0) -> "Sessions":
        """Return the distribution of this mean, in seconds."""
        if kind == "weibull":
            return cls(kind, mean / math.gamma(1 + 1 / shape), shape)
        if kind == "lognormal":
            return cls(kind, mean / math.exp(shape**2 / 2), shape)
        return cls(kind, mean, shape)

    @classmethod
    def with_median(cls, kind: Kind, median: float, shape: float = 1.0) -> "Sessions":
        """Return the distribution of this median, in seconds."""
        if kind == "exponential":
            return cls(kind, median / math.log(2), shape)
        if kind == "weibull":
            return cls(kind, median / math.log(2) ** (1 / shape), shape)
        return cls(kind, median, shape)

    @property
    def mean(self) -> float:
        """Its mean, in seconds."""
        if self.kind == "weibull":
            return self.scale * math.gamma(1 + 1 / self.shape)
        if self.kind == "lognormal":
            return self.scale * math.exp(self.shape**2 / 2)
        return self.scale

    def draw(self, rng: random.Random) -> float:
        """Draw the length of a session that begins now, in seconds."""
        if self.kind == "exponential":
            return rng.expovariate(1 / self.scale)
        if self.kind == "weibull":
            return rng.weibullvariate(self.scale, self.shape)
        if self.kind == "lognormal":
            return rng.lognormvariate(math.log(self.scale), self.shape)
        return self.scale

    def residual(self, rng: random.Random) -> float:
        """Draw how long a node that is met at a random moment still stays, in seconds.

        That is a uniform part of a session drawn with a probability proportional to its length: of
        a Weibull session (x / scale)^k is then gamma distributed with 1 + 1/k in place of 1, and
        the logarithm of a lognormal one has sigma² added to its mean.
        """
        whole = self.scale
        if self.kind == "exponential":
            whole = self.scale * rng.gammavariate(2.0, 1.0)
        elif self.kind == "weibull":
            power = rng.gammavariate(1 + 1 / self.shape, 1.0)
            whole = self.scale * power ** (1 / self.shape)
        elif self.kind == "lognormal":
            whole = rng.lognormvariate(math.log(self.scale) + self.shape**2, self.shape)
        return whole * rng.random()
