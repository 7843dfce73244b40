"""A data set read once, without a trace: its account, its lengths, and the first rows of each kind of trouble."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from softq.data.ledger import Ledger
from softq.data.lengths import Lengths
from softq.data.rows import Dropped
from softq.data.sources import DataSource
from softq.data.stream import Item, Stream

NAMED = 100  # other fields that are named


@dataclass
class Review:
    """What is seen of a stream while somebody else reads it."""

    stream: Stream
    sources: Sequence[DataSource]
    max_length: int | None  # in tokens; None: nothing is tokenised
    ledger: Ledger = field(init=False)
    lengths: Lengths = field(init=False)
    troubles: dict[str, Dropped] = field(default_factory=dict)  # reason -> the first row that was dropped for it
    other: dict[str, None] = field(default_factory=dict)  # fields that nobody reads

    def __post_init__(self) -> None:
        self.ledger = Ledger(tokenised=self.max_length is not None)
        self.lengths = Lengths(self.stream.kind, self.max_length)

    def items(self) -> Iterator[Item]:
        """The stream's rows, each entered as it passes; at the end the ledger is closed."""
        for item in self.stream.items:
            self.ledger.enter(self.sources[item.source].name, item.example, item.account)
            self.lengths.add(item)
            if isinstance(item.example, Dropped):
                self.troubles.setdefault(item.example.reason, item.example)
            elif len(self.other) < NAMED:
                self.other |= dict.fromkeys(item.example.other)
            yield item
        self.ledger.close()
