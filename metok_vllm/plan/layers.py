"""Decoder layers of each pruning stage, and the cache groups that vLLM makes of them.

Three boundaries p0 < p1 < p2 cut L layers into four stages: [0, p0) [p0, p1) [p1, p2) [p2, L).
vLLM gives all cache groups the same number of layers (v1/core/kv_cache_utils.py,
`_get_kv_cache_groups_uniform_page_size`), so a stage may be split over several groups, and a group
with fewer layers wastes the memory of those it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from metok_vllm.errors import ConfigError

NUM_STAGES = 4
# The paper's demo prunes at layers 3, 10 and 19 of 28.
PAPER_BOUNDARIES, PAPER_LAYERS = (3, 10, 19), 28
MAX_WASTE_PERCENT = 25.0


@dataclass(frozen=True)
class StageLayout:
    """Layers of each stage and cache groups of each stage, for a decoder of `num_layers`."""

    boundaries: tuple[int, int, int]
    num_layers: int

    @classmethod
    def of(
        cls, boundaries: tuple[int, int, int] | None, num_layers: int, first: int = 1
    ) -> StageLayout:
        """Checked layout; `None` means the default for this number of layers, from `first` on.

        Raises ConfigError when the boundaries do not fit or waste too much of the cache.
        """
        if num_layers < NUM_STAGES:
            raise ConfigError(
                f"metok.stages 2 and 3 need a decoder of at least {NUM_STAGES} layers; this one "
                f"has {num_layers}: use stages [1]",
                "stages",
            )
        if boundaries is None:
            return cls(default_boundaries(num_layers, first), num_layers)
        if boundaries[2] >= num_layers:
            raise ConfigError(
                f"metok.pruning_layers must be below the decoder's {num_layers} layers, got "
                f"{list(boundaries)}",
                "pruning_layers",
            )
        layout = cls(boundaries, num_layers)
        if layout.waste_percent > MAX_WASTE_PERCENT:
            raise ConfigError(
                f"metok.pruning_layers {list(boundaries)} would waste {layout.waste_percent:.0f} % "
                f"of the KV cache: vLLM gives every cache group the same number of layers, and "
                f"these stages have {list(layout.stage_sizes)}. Use multiples of one number, for "
                f"example {list(default_boundaries(num_layers))}",
                "pruning_layers",
            )
        return layout

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First layer of each stage, and the number of layers: five numbers."""
        return (0, *self.boundaries, self.num_layers)

    @cached_property
    def stage_sizes(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return tuple(self.starts[s + 1] - self.starts[s] for s in range(NUM_STAGES))

    @cached_property
    def layers_per_group(self) -> int:
        """Layers of every cache group, by vLLM's rule."""
        least, most = min(self.stage_sizes), max(self.stage_sizes)
        return most if most < least * 1.5 else least

    @cached_property
    def groups_of_stage(self) -> tuple[int, ...]:
        """Cache groups of each stage."""
        return tuple(-(-size // self.layers_per_group) for size in self.stage_sizes)

    @property
    def num_groups(self) -> int:
        """Cache groups of the whole decoder."""
        return sum(self.groups_of_stage)

    @property
    def waste_percent(self) -> float:
        """KV memory of layers that do not exist, in per cent of what the decoder needs."""
        return 100.0 * (self.num_groups * self.layers_per_group / self.num_layers - 1)

    def stage_of_layer(self, layer: int) -> int:
        """The stage that `layer` belongs to."""
        assert 0 <= layer < self.num_layers
        return sum(layer >= boundary for boundary in self.boundaries)


def default_boundaries(num_layers: int, first: int = 1) -> tuple[int, int, int]:
    """The paper's boundaries scaled to `num_layers`, as multiples of one group size.

    The group size lies between a ninth and a sixth of the layers (the paper's first boundary is at
    a ninth): of those, the one that wastes least, then the largest, as host work grows with groups.
    No boundary comes before `first`.
    """
    smallest = max(first, -(-num_layers // 9))
    largest = max(smallest, num_layers // 6)
    candidates = [_scaled(num_layers, size) for size in range(smallest, largest + 1)]
    return min(
        candidates, key=lambda b: (round(StageLayout(b, num_layers).waste_percent, 6), -b[0])
    )


def _scaled(num_layers: int, size: int) -> tuple[int, int, int]:
    steps = [1]
    for boundary in PAPER_BOUNDARIES[1:]:
        whole = PAPER_LAYERS * size
        wanted = (2 * boundary * num_layers + whole) // (2 * whole)  # rounded, halves up
        steps.append(max(wanted, steps[-1] + 1))
    p0, p1, p2 = (step * size for step in steps)
    return (min(p0, num_layers - 3), min(p1, num_layers - 2), min(p2, num_layers - 1))
