"""Which tokens of an answer the other answer does not have: what segment-weighted losses weigh up."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

MIN_MATCH = 3  # tokens; shorter matches are chance (RLHF-V, https://arxiv.org/abs/2312.00849, as released in RLAIF-V)


def changed_tokens(answers: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """For the chosen and the rejected answer, 1 on every token outside the matches of at least `MIN_MATCH` tokens, else 0.

    Matches are those of `difflib`: the longest common run, then the longest ones before and after it, and so on.

    Args:
        answers: token ids by view; where one of the two is missing, nothing can be said of the other.
    """
    if not {"chosen", "rejected"} <= answers.keys():
        return {}
    chosen, rejected = list(answers["chosen"]), list(answers["rejected"])
    masks = {"chosen": [1] * len(chosen), "rejected": [1] * len(rejected)}
    for match in SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks():
        if match.size >= MIN_MATCH:
            masks["chosen"][match.a : match.a + match.size] = [0] * match.size
            masks["rejected"][match.b : match.b + match.size] = [0] * match.size
    return {view: tuple(mask) for view, mask in masks.items()}
