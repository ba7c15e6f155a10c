"""A bank: many adapters of one base, in arrays with an axis of slots, for batches that mix them."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.base import explicit_sharding
from lora_jax.messages import require_known
from lora_jax.methods.checks import require_count
from lora_jax.partition import split_arrays
from lora_jax.serving import bank_arrays, grouped_matmul, joint_training
from lora_jax.serving.bank_arrays import Held
from lora_jax.serving.entries import Adapter, Prepared, entries
from lora_jax.serving.grouped_matmul import WAYS, Product, fastest, seconds
from lora_jax.serving.slots import ACTIVE, GAIN, PLAIN_METHOD, SLOT
from lora_jax.table import Table
from lora_jax.transform.adapt import Adapted
from lora_jax.transform.placement import Frozen


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "held"],
    meta_fields=["forward", "capacity", "max_rank", "way", "train"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Up to `capacity` adapters of one base, in slots 1, 2 ...; slot 0 is the base itself.

    A bank is a pytree, and what changes it gives a new one. Adapters of different methods, ranks
    and targets share it. Those that are equal to plain LoRA with rescaled outputs
    (`Variant.as_rescaled_lora`) are held as A, B with every scale in it, and the outputs' factors,
    and are computed together; each other method, with its settings, by its own products, where a
    row needs them. The first adapter of a method, the first on a weight, and the first that trains
    a parameter in full make new arrays, for which programs are compiled anew. Nothing else that is
    put, replaced or removed compiles anything. `trimmed` lets go of arrays that no adapter needs.

    With `train`, adapters can be trained together: `bank.trainable` is what an optimiser changes,
    `bank.with_trainable(...)` the bank with other numbers, and `bank.trained(slot, begun)` the
    adapter of a slot, to be saved. Each method then keeps its own factors, and adapters are
    computed together if their methods and ranks are the same. What methods do beside their product
    (dropout, learning-rate ratios, preconditioners, `penalty` and `update`) is left out.

    Args:
      forward: any JAX function, `forward(params, *args, **kwargs)`, as for `adapt`.
      base: its parameters; or, for one with quantised weights, (trainable, frozen): an adapter of
        it that trains no parameter in full.
      capacity: how many adapters there may be. Each parameter that any adapter trains in full is
        held as many times, and once more: with all parameters, as for a fully fine-tuned model,
        that is capacity + 1 times the model's memory.
      max_rank: the highest rank of an adapter; of no effect with `train`.
      way: how the products of plain LoRA are computed: one of
        `lora_jax.serving.grouped_matmul.NAMES`. By default, the ways are timed on this machine when
        a program is traced, once for each shape.
      train: whether adapters can be trained in the bank.
    """

    forward: Callable[..., Any]
    base: Any
    capacity: int = 64
    max_rank: int = 32
    way: str = grouped_matmul.MEASURED
    train: bool = False
    held: Held | None = None

    def __post_init__(self) -> None:
        if self.held is not None:
            return
        require_count("capacity", self.capacity)
        require_count("max_rank", self.max_rank)
        require_known(self.way, grouped_matmul.NAMES, f"way '{self.way}' is unknown")
        object.__setattr__(self, "base", bank_arrays.base_alone(self.base))
        object.__setattr__(self, "held", Held())

    # -- what is in it -----------------------------------------------------------------------------

    def prepare(self, adapter: Adapter) -> Prepared:
        """What the bank would hold of an adapter, in host memory: the work of `put` but the copy.

        Every bank of this base, with the same `max_rank` and `train`, can put it into any slot.

        Args:
          adapter: (trainable, frozen), of this base.

        Raises:
          ValueError: the adapter has another base or a higher rank, trains a parameter of
            another shape, or has numbers that are not finite. The message names it.
        """
        trainable, frozen = adapter
        bank_arrays.require_fit(self.base, trainable["params"], frozen.base)
        found, placements = entries(adapter, self._rank), tuple(frozen.spec.adapted)
        return Prepared(found, placements, self.base.base, self._rank)

    def put(self, slot: int, adapter: Adapter | Prepared, *, donate: bool = False) -> "Bank":
        """The bank with an adapter in a slot, in the place of what was there.

        Args:
          adapter: (trainable, frozen), of this base; or what `prepare` made of it.
          donate: whether the new bank may take this one's arrays, instead of copies. This bank, and
            whatever else has its arrays, cannot be used any more.

        Raises:
          ValueError: there is no such slot, or the adapter does not fit, as for `prepare`.
          NoMemoryError: memory has no room for what is new in the adapter, once for each slot. It
            is a ValueError.
        """
        self._require_slot(slot)
        ready = adapter if isinstance(adapter, Prepared) else self.prepare(adapter)
        if ready is adapter:
            bank_arrays.require_fit(self.base, ready.params, ready.base)
            if ready.max_rank != self._rank:
                made, mine = (
                    "train=True" if rank is None else f"max_rank={rank}"
                    for rank in (ready.max_rank, self._rank)
                )
                raise ValueError(
                    f"the adapter was prepared for {made}, and the bank has {mine}: prepare it "
                    "again"
                )
        bank_arrays.require_room(self._held, ready.entries, self.capacity + 1, donate)
        roomy = self._with_room(ready, bank_arrays.new_array)
        held = bank_arrays.written(roomy._held, slot, ready.entries, donate)
        return dataclasses.replace(roomy, held=held)

    def remove(self, slot: int, *, donate: bool = False) -> "Bank":
        """The bank with the base alone in a slot."""
        self._require_slot(slot)
        return dataclasses.replace(self, held=bank_arrays.written(self._held, slot, {}, donate))

    def trimmed(self, slots: Collection[int]) -> "Bank":
        """The bank with what the adapters in some slots need, and nothing else.

        Methods, weights and parameters of other adapters leave programs and memory. Nothing is
        copied. The other slots are of no use until something is put there.
        """
        base, held = bank_arrays.trimmed(self.base, self._held, slots, self.way)
        return self if held is self.held else dataclasses.replace(self, base=base, held=held)

    def shapes(self, ready: Prepared | None = None) -> "Bank":
        """The bank with shapes in the place of its arrays, to compile a program for.

            jax.jit(lj.Bank.apply).lower(bank.shapes(ready), ids, x).compile()

        Args:
          ready: what `prepare` made of an adapter, for the bank that has it in one of its slots.

        Raises:
          NoMemoryError: as for `put` with `donate`.
        """
        bank = self
        if ready is not None:
            bank_arrays.require_room(self._held, ready.entries, self.capacity + 1, True)
            bank = self._with_room(ready, bank_arrays.new_shape)
        return jax.tree.map(bank_arrays.shape_of, bank)

    def compile_put(self) -> None:
        """Compile what a `put` with `donate` runs; of a bank of `shapes`, too."""
        bank_arrays.compile_write(self._held)

    def _with_room(self, ready: Prepared, new: Callable[..., Any]) -> "Bank":
        slots = self.capacity + 1
        base, held = bank_arrays.with_room(
            self.base, self._held, ready.entries, ready.placements, slots, self.way, new
        )
        return dataclasses.replace(self, base=base, held=held)

    def explain(self) -> str:
        """How each adapted weight is computed, as a table."""
        rows = []
        for each in self.base.spec.adapted:
            kinds = dict.fromkeys(str(use) for use in each.use.uses)
            merged = dict.fromkeys(use.merges for use in each.use.uses if use.merges)
            constants = self._held.part("constants", each.use.path)
            methods = dict.fromkeys(
                (method.variant.title or type(method.variant).__name__)
                + (", rescaled" if f"{number}/{GAIN}" in constants else "")
                for number, method in enumerate(self._held.methods)
                if f"{number}/{ACTIVE}" in constants
            )
            rows.append((each.use.path, *(", ".join(x) for x in (kinds, methods, merged))))
        return Table(("path", "used as", "methods", "merged for each row at"), rows).to_text()

    def timings(self, rows: int, tokens: int) -> str:
        """The milliseconds of each way to compute the products of plain LoRA, as a table.

        Shapes that no program has had yet are measured now.

        Args:
          rows: how many rows a batch has.
          tokens: how many tokens each row has.
        """
        lines = []
        for product, path in self._products(rows, tokens).items():
            times = seconds(product, jax.default_backend())
            taken = fastest(product) if self.way == grouped_matmul.MEASURED else self.way
            shown = [f"{1000 * times[way]:.3f}" if way in times else "" for way in WAYS]
            lines.append((path, f"{product.inputs} x {product.outputs}", taken, *shown))
        heads = "first path", "in x out", "way", *(f"{way} ms" for way in WAYS)
        return Table(heads, lines).to_text()

    def _products(self, rows: int, tokens: int) -> dict[Product, str]:
        """The products of plain LoRA of a batch, each with the first weight that has it."""
        found: dict[Product, str] = {}
        number = self._held.methods.index(PLAIN_METHOD)
        for each in self.base.spec.adapted:
            factors = self._held.part("trainable", each.use.path)
            kinds = {use.kind for use in each.use.uses if use.merges is None}
            for kind, (first, second) in (("product", "ab"), ("transposed product", "ba")):
                a, b = (factors.get(f"{number}/{name}") for name in (first, second))
                if kind in kinds and a is not None and b is not None:
                    slots, rank, inputs = a.shape[-3:]
                    shape = rows, tokens, slots, rank, inputs, b.shape[-1]
                    product = Product(*shape, dtype=jnp.dtype(each.use.dtype).name)
                    found.setdefault(product, each.use.path)
        return found

    # -- computing with it -------------------------------------------------------------------------

    def apply(self, ids: Array, /, *args: Any, **kwargs: Any) -> Any:
        """`forward` of a batch, each row with the adapter of its own slot.

        Each row is computed as a batch of one, whatever else is in the batch. Call it under
        `jax.jit`: otherwise methods that are not plain LoRA are compiled at each call.

        Args:
          ids: the slot of each row, (rows,) integers. One that is not a slot gives NaN.
          *args, **kwargs: the inputs, in which every array has the rows first.

        Returns:
          What `forward` gives, with the rows first.

        Raises:
          ValueError: an array has not one row for each id, or is divided over explicit axes of a
            mesh.
        """
        ids = jnp.asarray(ids)
        if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"ids must be whole numbers of shape (rows,), got {ids.dtype}{ids.shape}"
            )
        arrays, rebuild = split_arrays((args, kwargs))
        for each in arrays:
            if each.shape[:1] != ids.shape:
                raise ValueError(
                    f"an input of shape {each.shape} has not the {len(ids)} rows of ids"
                )

        _require_auto((ids, *arrays, *jax.tree.leaves(self)))

        def row(slot: Array, inputs: list[Array]) -> Any:
            own, named = rebuild([x[None] for x in inputs])
            return jax.tree.map(_alone, self.one(slot)(*own, **named))

        valid = (ids >= 0) & (ids <= self.capacity)
        outputs = jax.vmap(row)(jnp.where(valid, ids, 0), arrays)
        return jax.tree.map(functools.partial(_or_nan, valid), outputs)

    def one(self, slot: Array) -> Callable[..., Any]:
        """`forward` with the adapter of one slot, as a function of its inputs.

        It computes a whole batch with that adapter. `jax.vmap` may map it over slots, as `apply`
        does.

        Args:
          slot: () integer. What it is for a number that is not a slot is not defined.
        """
        held, spec = self._held, self.base.spec
        adapters, constants = {}, {}
        for each in spec.adapted:
            path, stack = each.use.path, each.use.stack_shape
            adapters[path] = held.part("trainable", path)
            constants[path] = held.part("constants", path) | {SLOT: jnp.broadcast_to(slot, stack)}
        shared = {"0": held.part("shared trainable")}
        trainable = {"adapters": adapters, "params": {}, "shared": shared}
        arrays = self.base.base | {path: x[slot] for path, x in held.params.items()}
        common = (held.part("shared constants"),) if adapters else ()
        frozen = Frozen(arrays, constants, spec, common)
        return functools.partial(Adapted(self.forward, ()).apply, trainable, frozen)

    @property
    def trainable(self) -> dict[bank_arrays.Key, Array]:
        """The arrays that training changes: all adapters' factors, and parameters in full.

        Each array has an axis of slots, after the stacked axes of factors, and first in the others.

        Raises:
          ValueError: the bank was made without `train`.
        """
        self._require_train()
        return joint_training.trainable(self._held)

    def with_trainable(self, trainable: dict[bank_arrays.Key, Array]) -> "Bank":
        """The bank with the numbers of an array like `trainable`, where its adapters train them.

        All others stay, bit by bit, and get no gradient: those of slot 0, of slots without an
        adapter, and in each slot what its adapter does not train. An optimiser may change them
        (weight decay does); here that is left out.

        Raises:
          ValueError: the bank was made without `train`.
        """
        self._require_train()
        held = joint_training.with_trainable(self._held, trainable)
        return dataclasses.replace(self, held=held)

    def trained(self, slot: int, begun: Adapter) -> Adapter:
        """The adapter of a slot with what training has made of it, (trainable, frozen).

        Args:
          slot: where it is.
          begun: the adapter that was put there. Its frozen half is given back as it is.

        Raises:
          ValueError: there is no such slot, or another adapter is in it; the bank was made without
            `train`.
        """
        self._require_train()
        self._require_slot(slot)
        return joint_training.trained(self._held, slot, begun)

    @property
    def _rank(self) -> int | None:
        """The rank that factors are filled up to."""
        return None if self.train else self.max_rank

    def _require_train(self) -> None:
        if not self.train:
            raise ValueError(
                "this bank cannot be trained, as it holds methods as plain LoRA: make it with "
                "train=True"
            )

    @property
    def _held(self) -> Held:
        assert self.held is not None
        return self.held

    def _require_slot(self, slot: int) -> None:
        if not 1 <= slot <= self.capacity:
            raise ValueError(f"slot {slot}: a bank of capacity {self.capacity} has slots 1 to "
                             f"{self.capacity}, and slot 0 is the base")  # fmt: skip


def _require_auto(arrays: Iterable[Any]) -> None:
    """Refuse what JAX cannot divide by itself: each row picks its adapter, in a gather."""
    if any(explicit_sharding(x) is not None for x in arrays):
        raise ValueError(
            "a bank cannot compute with arrays that are divided over a mesh of AxisType.Explicit: "
            "make the mesh with AxisType.Auto, as lj.make_mesh does"
        )


def _alone(y: Array) -> Array:
    """The output of a batch of one, without its axis of rows."""
    return y[0] if y.shape[:1] == (1,) else y


def _or_nan(valid: Array, y: Array) -> Array:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        return y
    return jnp.where(valid.reshape(-1, *[1] * (y.ndim - 1)), y, jnp.nan)
