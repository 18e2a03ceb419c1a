"""Data sets in shards that are streamed: local files, and repositories of the Hub that are larger than the disk."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from t2i.config import ConfigError, check_positive
from t2i.data.datasets import loader_of, prepared
from t2i.data.preparation import ImageSettings, Preparation
from t2i.data.records import Item, check_policy
from t2i.data.shard_index import ShardIndex, Source
from t2i.data.shard_sources import Files, Repository, matching
from t2i.data.shards import Columns, Shard
from t2i.data.splits import Captioned, Split
from t2i.data.streaming import Stream


@dataclass(frozen=True, kw_only=True)
class ShardSettings(ImageSettings):
    """The settings that webdataset.yaml and stream.yaml of conf/dataset/ have in common."""

    path: str
    image_column: str
    caption_column: str
    shuffle_shards: int
    validation_shards: int
    validation_items: int
    on_error: str
    cache_dir: str
    follow_links: bool = False  # run folders that were written before do not have it
    crop_variants: int = field(init=False, default=1)  # a stream draws its crops anywhere
    bucket_step: int = field(init=False, default=1)  # and has no buckets

    def __post_init__(self):
        if self.buckets:
            raise ConfigError(
                "dataset.buckets=true is not available for streaming data sets, for it needs the sizes of all images "
                "in advance; use false"
            )
        super().__post_init__()
        check_positive("dataset.shuffle_shards", self.shuffle_shards, "use 1 or more")
        check_positive("dataset.validation_items", self.validation_items, "256 is common")
        check_policy(self.on_error)

    @property
    def folder(self) -> Path:
        """The folder of indices and fetched shards."""
        return Path(self.cache_dir).expanduser() / "shards"

    def captioned(self, source: Source, train: list[Shard], held_out: list[Shard], lookahead: int) -> Captioned:
        """The stream of `train` and the images held out; if `held_out` is empty, the last shards of `train` are."""
        if not train:
            raise ConfigError(f"dataset.path={self.path} contains no shards (.tar or .parquet)")
        if not held_out:
            if not 0 < self.validation_shards < len(train):
                raise ConfigError(
                    f"dataset.validation_shards={self.validation_shards} of {len(train)} shards of {self.path} can't "
                    "be held out; hold out at least one, and leave one to train on"
                )
            train, held_out = train[: -self.validation_shards], train[-self.validation_shards :]
        columns = Columns(self.image_column, self.caption_column)
        trained_on, validated_on = (
            ShardIndex(source, shards, self.path, columns, self.folder, self.on_error) for shards in (train, held_out)
        )
        stream = Stream(trained_on, Preparation(self), self.shuffle_shards, lookahead)
        validation = self._held_out(validated_on)
        indexed = [(index, shard) for index in (trained_on, validated_on) for shard in index.known()]
        skipped = [item for index, shard in indexed for item in index.summary(shard)["skipped"]]
        return Captioned(stream, validation, skipped)

    def _held_out(self, index: ShardIndex) -> Split:
        """At most `validation_items` images of the shards, chosen by their hashes."""
        items = []
        for shard in range(len(index.shards)):
            for number in range(index.count(shard)):
                captions, facts, _ = index.item(shard, number)
                content = partial(_content, index, shard, number)
                items.append(Item(f"{index.shards[shard].name}: {number}", captions, content, facts))
        if not items:
            raise ConfigError(f"dataset.path={self.path}: none of the held-out images can be used")
        items = sorted(items, key=lambda item: (item.facts.sha256, item.captions))[: self.validation_items]
        return prepared(items, [item.captions[:1] for item in items], Preparation(self).plain())


def _content(index: ShardIndex, shard: int, number: int) -> bytes:
    return index.contents(shard, [number])[0]


@dataclass(frozen=True, kw_only=True)
class LocalShards(ShardSettings):
    """Shards on this machine: a folder and those below it, or a pattern.

    Held out are the shards in the folder validation/, or else the last `validation_shards` by name.
    """

    def load(self) -> Captioned:
        source, shards = Files.find(self.path, self.follow_links)
        held_out = matching(shards, "validation/*")
        train = [shard for shard in shards if shard not in held_out]
        return self.captioned(source, train, held_out, lookahead=2 * self.shuffle_shards)


@dataclass(frozen=True, kw_only=True)
class HubShards(ShardSettings):
    """Shards in a data set's repository of the Hub, fetched one by one.

    Held out are the shards that match `validation_files`, or else the last `validation_shards` of the others by name.
    """

    revision: str | None
    data_files: str
    validation_files: str | None
    keep_shards: int

    def __post_init__(self):
        super().__post_init__()
        if self.keep_shards <= self.shuffle_shards:
            raise ConfigError(
                f"dataset.keep_shards={self.keep_shards} must be larger than dataset.shuffle_shards="
                f"{self.shuffle_shards}, so that shards can be fetched while others are read; "
                f"use {2 * self.shuffle_shards}"
            )

    def load(self) -> Captioned:
        source, shards = Repository.find(self.path, self.revision, self.folder, self.keep_shards)
        held_out = matching(shards, self.validation_files)
        train = [shard for shard in matching(shards, self.data_files) if shard not in held_out]
        if shards and not train:
            raise ConfigError(
                f"dataset.data_files={self.data_files} matches none of the {len(shards)} shards of {self.path}, such "
                f"as {shards[0].name}; change the pattern"
            )
        return self.captioned(source, train, held_out, lookahead=self.keep_shards)


webdataset = loader_of(LocalShards)
stream = loader_of(HubShards)
