"""Which faults a seed injects, how often, and how many there were."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

Moment = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """Chances per named point, per record or per step; `rebalance` is per second."""

    crash: float = 0.004
    zombie: float = 0.004
    unavailable: float = 0.006
    unknown: float = 0.006
    lost_send: float = 0.005
    doubled_send: float = 0.05
    redelivery: float = 0.1
    gap: float = 0.02
    rebalance: float = 0.5
    lost_executor: float = 0.08
    slow_executor: float = 0.08
    repeated_request: float = 0.2

    def drawn(self, chance: random.Random) -> "Rates":
        """Some kinds of fault not at all, some at their rate, some three times as often."""
        factors = {each.name: chance.choice([0.0, 1.0, 1.0, 3.0]) for each in fields(self)}
        return replace(self, **{name: min(0.5, getattr(self, name) * by) for name, by in factors.items()})


class Faults:
    """Draws faults while `on`; `counts` tells how many of each kind came true."""

    def __init__(self, chance: random.Random, rates: Rates) -> None:
        self.chance = chance
        self.rates = rates
        self.on = True
        self.counts: Counter[str] = Counter()

    def strikes(self, kind: str) -> bool:
        rate = getattr(self.rates, kind)
        if not self.on or not rate or self.chance.random() >= rate:
            return False
        self.counts[kind] += 1
        return True
