"""What a store of adapters counts."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a store has done so far."""

    hits: int = 0
    """Leases of adapters that were in a slot."""
    puts: int = 0
    """Adapters that were put into a slot."""
    evictions: int = 0
    """Adapters that left their slot for another."""
    loads: int = 0
    """Loads that have begun."""

    def plus(self, **more: int) -> "Counts":
        """The counts with more of some, by their names."""
        changed = {name: getattr(self, name) + n for name, n in more.items()}
        return dataclasses.replace(self, **changed)
