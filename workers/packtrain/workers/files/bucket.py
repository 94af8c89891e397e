"""A token bucket: how long to wait so that what is sent stays within a rate. Pure; time comes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """At most `burst + rate × seconds` bytes go out in any span of time.

    A send is booked first and waited for afterwards, so several senders share one bucket in turn, and a send larger
    than the burst waits longer instead of for ever.
    """

    rate: float  # bytes per second
    burst: float  # bytes
    at: float  # seconds, when `level` was right
    level: float = 0  # bytes that may go out at once; negative: booked already

    def book(self, num_bytes: int, now: float) -> float:
        """Seconds to wait before these bytes may go out.

        >>> bucket = TokenBucket(rate=100, burst=50, at=0)
        >>> bucket.book(50, now=10), bucket.book(100, now=10), bucket.book(100, now=10.5)
        (0.0, 1.0, 1.5)
        """
        self.level = min(self.burst, self.level + (now - self.at) * self.rate) - num_bytes
        self.at = now
        return max(0.0, -self.level / self.rate)
