"""What a process really has in memory, told apart by who could take it back.

    private   heap, cache, scratch space, repacked weights: the kernel must keep it
    mapped    pages of files: libraries, and weights that are mapped. The kernel may drop them and read them again

llama.cpp maps the whole model file, and keeps it mapped where it has put weights into another order beside it
(CPU_REPACK). So the mapped pages say more about the page cache than about the model (SmolLM2 Q4_0: 160 MiB resident for
86 MiB of weights), and only the part that the layout really reads from there is counted.

The numbers are the kernel's counters (/proc/PID/statm), which cost microseconds. A walk over all pages
(/proc/PID/smaps_rollup) would also say how much is shared with neighbours, but takes 10 ms per GiB, and what is shared
with a neighbour stays when that one leaves.
"""

from __future__ import annotations

import psutil
from pydantic import BaseModel, ConfigDict


class OwnMemory(BaseModel):
    """Resident memory of one process, bytes."""

    model_config = ConfigDict(frozen=True)

    private: int
    mapped: int

    @property
    def resident(self) -> int:
        """All of it."""
        return self.private + self.mapped


def own_memory(pid: int | None = None) -> OwnMemory:
    """Of this process, or of the one with this id.

    Raises:
        psutil.Error: It is gone.
    """
    info = psutil.Process(pid).memory_info()
    mapped = int(getattr(info, "shared", 0))  # only Linux tells them apart; elsewhere all counts as private
    return OwnMemory(private=int(info.rss) - mapped, mapped=mapped)
