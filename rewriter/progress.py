"""A progress bar on stderr that appears only when something takes long."""

from collections.abc import Iterator
from contextlib import contextmanager

from rewriter.variant.copying import Progress

DELAY_SECONDS = 1.0


@contextmanager
def byte_progress(total_bytes: int, description: str = "shards") -> Iterator[Progress]:
    """A bar over bytes, shown after a second; yields the function that takes the bytes done."""
    from tqdm import tqdm

    with tqdm(
        total=total_bytes,
        disable=None,  # only on a terminal: elsewhere its lines would mix with the sentences that scripts read
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=DELAY_SECONDS,
        desc=description,
        leave=False,
    ) as bar:
        yield bar.update
