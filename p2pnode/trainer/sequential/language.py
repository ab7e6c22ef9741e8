"""A language model whose blocks are remote, and whose ends the trainer keeps."""

from collections.abc import Iterator

import torch
from torch import nn

from p2pnode.models.transformer import ModelEnds
from p2pnode.trainer.sequential.module import RemoteSequential


class RemoteLanguageModel(nn.Module):
    """Embedding, norm and head here, and the blocks between on other machines.

    `parameters()` are those of the ends, for the trainer's own optimiser; the blocks' hosts have
    theirs. In `loss(tokens).backward()` each steps its own.

    Args:
        ends: what stands before and behind the blocks.
        blocks: all blocks of the model.
    """

    def __init__(self, ends: ModelEnds, blocks: RemoteSequential) -> None:
        super().__init__()
        self.ends = ends
        self.blocks = blocks

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens, (rows, positions), to scores of the next one, (rows, positions, vocab_size).

        Raises:
            SchemaError, NoLiveExpertError, RemoteError: as `RemoteSequential` says.
        """
        return self.ends.logits(self.blocks(self.ends.embed(tokens)))

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy of each token but the first, in nats.

        Args:
            tokens: of shape (rows, positions + 1).

        Raises:
            SchemaError, NoLiveExpertError, RemoteError: as `RemoteSequential` says.
        """
        return self.ends.loss(self.blocks(self.ends.embed(tokens[:, :-1])), tokens[:, 1:])

    def generate(
        self,
        prompt: torch.Tensor,
        count: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[torch.Tensor]:
        """Continue sequences token by token, in one session with the blocks' hosts.

        Args:
            prompt: tokens of shape (rows, positions), at least one position.
            count: how many tokens to add.
            temperature: divides the scores; 0 always takes the likeliest token.
            generator: decides the rest.

        Yields:
            The next token of each row, of shape (rows,).

        Raises:
            ValueError: the prompt is empty, or the temperature is negative.
            SchemaError, NoLiveExpertError, RemoteError: as `RemoteSession.step` says.
        """
        if not prompt.numel() or temperature < 0:
            raise ValueError("generation takes a prompt, and a temperature of 0 or more")
        with self.blocks.session(prompt.shape[1] + count) as session, torch.no_grad():
            tokens = prompt
            for _ in range(count):
                hidden = session.step(self.ends.embed(tokens))
                scores = self.ends.logits(hidden[:, -1]).float()
                if temperature:
                    chances = torch.softmax(scores / temperature, dim=-1)
                    tokens = torch.multinomial(chances, 1, generator=generator)
                else:
                    tokens = scores.argmax(dim=-1, keepdim=True)
                yield tokens[:, 0]
