"""medvlm_dpo: preference-optimisation experiments on medical vision-language models."""
