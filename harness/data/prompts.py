"""The prompts of a dataset's frames as tokens, with or without the state in them.

Legend: L prompt tokens, S dimensions of a state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.data.tokenizer import Tokenizer, tokenizer_of
from harness.recipe.schema import Data, Recipe


def instruction(data: Data, task: str) -> str:
    """The instruction of a frame of this task.

    It is the recipe's one prompt, else the task's own text, else the recipe's default.
    """
    if data.prompt is not None:
        return data.prompt
    return data.default_prompt if data.default_prompt is not None and not task.strip() else task


def most_tokens(recipe: Recipe, tokenizer: Tokenizer, task: str, dimensions: int) -> int:
    """The largest number of tokens of a frame of this task, whatever its state of so many dimensions is."""
    text = instruction(recipe.data, task)
    if recipe.model.discrete_state_input:
        return tokenizer.most_with_state(text, dimensions)
    return len(tokenizer.encode(text))


class Prompts:
    """The tokens of frames, padded with 0 or cut to `length`. Picklable."""

    def __init__(self, recipe: Recipe, tasks: Mapping[int, str], length: int) -> None:
        self._length, self._with_state = length, recipe.model.discrete_state_input
        self._tokenizer = tokenizer_of(recipe)
        self._texts = {index: instruction(recipe.data, task) for index, task in tasks.items()}
        self._of_tasks = (
            {}
            if self._with_state
            else {index: self._padded(self._tokenizer.encode(text)) for index, text in self._texts.items()}
        )

    def __call__(self, task: int, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [L] int32 and mask [L] bool of a frame.

        `state` [S] is normalized and not padded. It is needed only if the recipe has the state in the prompt.
        """
        if not self._with_state:
            return self._of_tasks[task]
        assert state is not None
        return self._padded(self._tokenizer.encode_with_state(self._texts[task], state))

    def _padded(self, found: list[int]) -> tuple[np.ndarray, np.ndarray]:
        kept = found[: self._length]
        tokens = np.zeros(self._length, np.int32)
        tokens[: len(kept)] = kept
        return tokens, np.arange(self._length) < len(kept)
