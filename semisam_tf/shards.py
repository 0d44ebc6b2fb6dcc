"""Work that several processes share: process i of n takes every n-th case, whatever starts them, and wherever."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from semisam_tf.atomic import locked
from semisam_tf.options import OptionError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Process `number`, from 1, of `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `of`-th item, from the `number`-th on: all shards' shares together are the items, each once."""
        return list(items[self.number - 1 :: self.of])

    def own_first(self, items: Sequence[T]) -> list[T]:
        """All items: the own share, then those of the shards that follow, so that no two begin with the same."""
        turns = [Shard((self.number - 1 + k) % self.of + 1, self.of) for k in range(self.of)]
        return [item for shard in turns for item in shard.share(items)]


def parse_shard(text: str) -> Shard | None:
    """The shard that --shard names; None where it is empty.

    Raises:
        OptionError: Anything but i/n with 1 <= i <= n.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise OptionError(
            f"--shard: expected i/n with 1 <= i <= n, as 1/4, 2/4, 3/4 and 4/4 for four processes. Received: {text!r}."
        )
    return Shard(int(match[1]), int(match[2]))


@contextlib.contextmanager
def locked_for(folder: Path, flag: str, shard: Shard | None) -> Iterator[None]:
    """Holds `folder` for this process alone; for a shard together with other shards, and its share alone.

    Raises: As `atomic.locked`; for a shard of other `of` than one at work, too.
    """
    if shard is None:
        with locked(folder, flag):
            yield
        return
    own = f".lock_{shard.number}_of_{shard.of}"
    with locked(folder, flag, shared=True), locked(folder, "--shard", name=own):
        for other in sorted(folder.glob(".lock_*_of_*")):
            if not other.name.endswith(f"_of_{shard.of}"):
                # Shared: it is only asked whether the shard that wrote the file is at work, and others ask as well.
                with locked(folder, "--shard, as one of another number of shards,", name=other.name, shared=True):
                    pass
        yield
