"""Which adapter is in which slot of a base model.

Slots are counted while requests use them; idle ones keep their adapter until another needs the room, the one
used longest ago first. The table belongs to the engine's thread; only `resident` may be asked by others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from atelier.diffusion.slots import InferenceSlots, PackedFactors
from services.inference import metrics


@dataclass(slots=True, kw_only=True)
class _Resident:
    slot: int
    packed: PackedFactors
    users: int = 0


class SlotTable:
    """The adapters in a bank's slots, by digest."""

    def __init__(self, bank: InferenceSlots) -> None:
        self._bank = bank
        self._free = list(range(bank.config.num_slots - 1, 0, -1))
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # used longest ago first

    def resident(self, digest: str) -> PackedFactors | None:
        """The adapter, when it is in a slot at this moment."""
        found = self._residents.get(digest)
        return found.packed if found else None

    def acquire(self, adapters: Mapping[str, PackedFactors]) -> dict[str, int] | None:
        """Puts all of a request's adapters into slots and holds them there until `release`.

        Takes all or none, so that requests never wait for each other in a circle.

        Returns:
            Each digest's slot, or None while too many slots are in use.
        """
        missing = [digest for digest in adapters if digest not in self._residents]
        idle = [digest for digest, resident in self._residents.items() if not resident.users]
        evictable = [digest for digest in idle if digest not in adapters]
        short = len(missing) - len(self._free)
        if short > len(evictable):
            return None
        for digest in evictable[: max(short, 0)]:
            self._evict(digest)
        for digest in missing:
            self._load(digest, adapters[digest])
        for digest in adapters:
            self._residents[digest].users += 1
            self._residents.move_to_end(digest)
        return {digest: self._residents[digest].slot for digest in adapters}

    def release(self, digests: Iterable[str]) -> None:
        """Gives back what `acquire` took. The adapters stay where they are."""
        for digest in digests:
            self._residents[digest].users -= 1
            assert self._residents[digest].users >= 0, "released more often than acquired"

    def _load(self, digest: str, packed: PackedFactors) -> None:
        self._bank.load(self._free[-1], packed)
        self._residents[digest] = _Resident(slot=self._free.pop(), packed=packed)

    def _evict(self, digest: str) -> None:
        slot = self._residents.pop(digest).slot
        self._bank.clear(slot)
        self._free.append(slot)
        metrics.SLOT_EVICTIONS.inc()
