"""A worker's clock shows moments that survive being written as RFC 3339."""

from datetime import datetime

from bus.records import rfc3339
from bus.worker import DatabaseClock


async def test_a_moment_read_back_is_the_moment() -> None:
    clock = DatabaseClock()

    async def there() -> float:
        return 1_795_300_000.123_456_7

    await clock.measure(there)
    for _ in range(1_000):
        moment = clock.now()
        assert datetime.fromisoformat(rfc3339(moment)).timestamp() == moment
