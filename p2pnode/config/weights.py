"""How the states of experts travel between hosts."""

from dataclasses import dataclass

from p2pnode.config.units import KIB, MIB
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSettings:
    """Limits of giving and taking experts' states."""

    chunk_bytes: int = MIB  # of the states this node gives; a power of two, 1 KiB to 4 MiB
    max_state_bytes: int = 16 * 1024 * MIB  # of one expert's state, given or taken
    versions_kept: int = 2  # of each expert, on disk, so that those who fetch one can end
    snapshot_interval: float = 1.0  # between two versions of one expert, whoever asks for them
    max_uploads: int = 8  # streams that chunks are sent on at once
    max_uploads_per_peer: int = 2
    max_upload_rate: int = 0  # bytes of chunks a second; 0: all that limits.max_upload leaves
    max_download_rate: int = 0
    max_sources: int = 8  # holders that one state is fetched from at once
    requests_ahead: int = 4  # chunks asked for on a stream before the first has come
    request_timeout: float = 30.0  # for an answer that is not a chunk; snapshots are part of it
    chunk_patience: float = 15.0  # for each chunk to come, or to be taken
    idle_timeout: float = 30.0  # of a stream on which nothing is asked for
    busy_pause: float = 1.0  # before asking a holder again that has nothing new or no room
    busy_tries: int = 30  # without a chunk, until such a holder is given up

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: the chunk size is none.
        """
        size = self.chunk_bytes
        if size & (size - 1) or not KIB <= size <= 4 * MIB:
            raise ConfigError("weights.chunk_bytes must be a power of two from 1 KiB to 4 MiB")
