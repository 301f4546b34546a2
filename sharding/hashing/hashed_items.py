"""A table whose rows change owners, over the ranks: TorchRec's managed collision collection, mended where it breaks.

What is mended: FBGEMM has no CPU kernel for rows that begin anew, so they are written through the table's
memory; they begin as the row that the newcomer was read from until then, not as random numbers of each rank's own
generator; the hook after a lookup is called, as for any other table; and the result is that of an EmbeddingCollection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec import EmbeddingCollection
from torchrec.distributed.mc_embedding import (
    ManagedCollisionEmbeddingCollectionSharder,
    ShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingPlan
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from common.errors import InputError
from model.hashing_config import HashingConfig
from sharding.hashing.id_map import IdMap

BeforeReset = Callable[[str, Tensor], None]
"""(table, rows on this rank that are about to begin anew, int64)."""


def hash_items(model: nn.Module, plan: ShardingPlan, rules: HashingConfig) -> None:
    """Put the one collection of unpooled tables of a model behind a map, in place, before the model is sharded.

    Args:
        model: with an EmbeddingCollection of one table of `rules.rows` rows, on the meta device.
        plan: of the model as it is: nothing in it changes.
        rules: who gets which row.

    Raises:
        InputError: the plan does not give whole buckets to each rank, in order, as many to one as to the other, which
            is what TorchRec's routing of ids assumes.
    """
    ((path, table),) = (found for found in model.named_modules() if isinstance(found[1], EmbeddingCollection))
    configs = table.embedding_configs()
    assert [config.num_embeddings for config in configs] == [rules.rows], (configs, rules)
    name = configs[0].name
    _check_parts(name, cast(dict[str, ParameterSharding], plan.plan[path])[name], rules)
    # The map is on the meta device too: each rank makes that of its own rows when the table is sharded.
    maps = ManagedCollisionCollection({name: IdMap(rules, torch.device("meta"))}, configs)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, ManagedCollisionEmbeddingCollection(table, maps))


def _check_parts(name: str, sharding: ParameterSharding, rules: HashingConfig) -> None:
    ranks = len(sharding.ranks or ())
    if (sharding.sharding_type, sharding.compute_kernel) != ("row_wise", "fused"):
        raise InputError(
            f"table `{name}` is hashed, and planned {sharding.sharding_type} with kernel {sharding.compute_kernel}; "
            f"its buckets lie on the ranks that keep their map: set sharding.tables.{name}.sharding=row-wise and "
            f"sharding.tables.{name}.kernel=fused"
        )
    if rules.buckets % ranks:
        raise InputError(
            f"model.items.hashing.buckets={rules.buckets} cannot be shared out evenly to {ranks} ranks: set a number "
            f"that {ranks} divides (it cannot change once trained), or use another number of ranks"
        )
    assert isinstance(sharding.sharding_spec, EnumerableShardingSpec)
    sizes = {shard.shard_sizes[0] for shard in sharding.sharding_spec.shards}
    if sizes != {rules.rows // ranks}:
        raise InputError(
            f"table `{name}` is hashed, and planned with {sorted(sizes)} rows on different ranks; each must hold as "
            f"many: give all ranks as much memory in the plan, or set model.items.kind=vocabulary"
        )


class ShardedHashedItems(ShardedManagedCollisionEmbeddingCollection):
    """This rank's buckets and rows.

    Attributes:
        before_reset: called with the rows that have got another owner before they are written, if set.
    """

    before_reset: BeforeReset | None = None

    def compute_and_output_dist(self, ctx: Any, input: Any) -> Any:
        """Map and look up; the result is that of a ShardedEmbeddingCollection, whose hook after a lookup is called."""
        remapped = self._managed_collision_collection.compute(ctx, input)
        self._evict(self._managed_collision_collection.evict())
        return self._embedding_module.compute_and_output_dist(ctx, remapped)

    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Rows begin as their bucket's shared row, as which the newcomer was read so far; optimizer states at 0."""
        for table, rows_n in evictions_per_table.items():
            if rows_n is None:
                continue
            if self.before_reset is not None:
                self.before_reset(table, rows_n)
            size = self.map_of(table).bucket_rows
            kernel, index = self._table_to_tbe_and_index[table]
            weight_RD = kernel.split_embedding_weights()[int(index)].detach()
            weight_RD.index_copy_(0, rows_n, weight_RD.index_select(0, rows_n // size * size + size - 1))
            for state in kernel.split_optimizer_states()[int(index)]:
                state.detach().index_fill_(0, rows_n, 0)

    def map_of(self, table: str) -> IdMap:
        """Of ids to this rank's rows."""
        found = self._managed_collision_collection._managed_collision_modules[table]
        assert isinstance(found, IdMap)
        return found


class HashedItemsSharder(ManagedCollisionEmbeddingCollectionSharder):
    """What DistributedModelParallel needs to shard what `hash_items` makes."""

    def shard(
        self,
        module: ManagedCollisionEmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,  # noqa: ARG002 (TorchRec's)
    ) -> ShardedHashedItems:
        """This rank's part."""
        assert device is not None
        return ShardedHashedItems(
            module, params, ec_sharder=self._e_sharder, mc_sharder=self._mc_sharder, env=env, device=device
        )

    @property
    def sharded_module_type(self) -> type[ShardedHashedItems]:
        """What it makes."""
        return ShardedHashedItems


def hashed_tables(model: nn.Module) -> dict[str, ShardedHashedItems]:
    """The sharded hashed tables of a model by name; at most one as Segue builds it."""
    return {
        table: module
        for module in model.modules()
        if isinstance(module, ShardedHashedItems)
        for table in module._managed_collision_collection._managed_collision_modules
    }


def hash_state(model: nn.Module) -> dict[str, Tensor]:
    """The maps of this rank, `TABLE.NAME` each; to be copied by who keeps them while training goes on."""
    return {
        f"{table}.{name}": value
        for table, module in hashed_tables(model).items()
        for name, value in module.map_of(table).state().items()
    }


def load_hash_state(model: nn.Module, pieces: Iterable[dict[str, Tensor]]) -> None:
    """Take over the `hash_state` of all ranks of a model, however many ranks there were: whole buckets move."""
    whole = list(pieces)
    for table, module in hashed_tables(model).items():
        prefix = f"{table}."
        module.map_of(table).load(
            [
                {name.removeprefix(prefix): value for name, value in piece.items() if name.startswith(prefix)}
                for piece in whole
            ]
        )
