"""Every metric name, once. No torch here: the report and the launcher read these names.

The functions that compute the diagnostics work on tensors and therefore live in `medvlm_dpo.objectives.diagnostics`, under these names.
A full name is `<split>/<name>` or, for one term of a sum, `<split>/<term>/<name>`.
"""

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)

# --- from the objective itself; rewards are in each loss's own units and are never compared between losses -----------
LOSS = "loss"
CHOSEN_REWARD = "chosen_reward"
REJECTED_REWARD = "rejected_reward"
REWARD_ACCURACY = "reward_accuracy"  # share of pairs with chosen reward > rejected reward, ties 1/2
REWARD_MARGIN = "reward_margin"  # mean of chosen minus rejected reward
IMAGE_ACCURACY = "image_accuracy"  # the same two of chosen against chosen_corrupt
IMAGE_MARGIN = "image_margin"
MIXED_ACCURACY = "mixed_accuracy"  # the same two of chosen against rejected_corrupt
MIXED_MARGIN = "mixed_margin"

# --- diagnostics, alike for every loss --------------------------------------------------------------------------------
PREFERENCE_ACCURACY = "preference_accuracy"  # share of pairs with mean log-prob chosen > rejected, ties 1/2
PREFERENCE_GAIN = "preference_gain"  # share of pairs with log-ratio to the start chosen > rejected, ties 1/2
PREFERENCE_MARGIN = "preference_margin"  # mean of chosen minus rejected log-ratio to the start, nats; always beside the gain
CHOSEN_LOGPS_CHANGE = "chosen_logps_change"  # mean log-ratio to the start, summed over response tokens, nats
REJECTED_LOGPS_CHANGE = "rejected_logps_change"
IMAGE_GAP = "image_gap"  # mean log-prob of the chosen answer, true minus corrupted image, summed over response tokens, nats
CHOSEN_LENGTH = "chosen_length"  # mean response tokens, end-of-sequence included
REJECTED_LENGTH = "rejected_length"
LENGTH_R2 = "length_r2"  # squared correlation of preference margin and difference of lengths over the validation pairs

# --- of the training itself -------------------------------------------------------------------------------------------
GRADIENT_NORM = "gradient_norm"  # before clipping
LEARNING_RATE = "learning_rate"
EXAMPLES_PER_SECOND = "examples_per_second"


def metric(split: str, name: str) -> str:
    """The full name `<split>/<name>`."""
    return f"{split}/{name}"


def of_term(term: str, name: str) -> str:
    """A metric of one term of a sum: `<term>/<name>`. A nested term's name has a slash of its own: `mdpo/dpo/loss`."""
    return f"{term}/{name}"


def reward_of(view: str) -> str:
    """The mean reward of one view: `chosen_reward`, `chosen_corrupt_reward`."""
    return f"{view}_reward"
