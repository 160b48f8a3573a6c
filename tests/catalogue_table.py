"""The catalogue of losses by name: what each asks for, its defaults, and for sums their terms and weights. Data only.

Words stand for several parameters: `P` for the two policy log-probabilities, `R` for the reference's, `n` for the two lengths, and so on
(`WORDS`); every other word is a parameter itself. A name starting with `detached_` carries no gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WORDS: Mapping[str, tuple[str, ...]] = {
    "P": ("policy_chosen_logps", "policy_rejected_logps"),
    "R": ("reference_chosen_logps", "reference_rejected_logps"),
    "Pm": ("policy_chosen_mean_logps", "policy_rejected_mean_logps"),
    "Rm": ("reference_chosen_mean_logps", "reference_rejected_mean_logps"),
    "Pt": ("policy_chosen_token_logps", "policy_rejected_token_logps"),
    "Rt": ("reference_chosen_token_logps", "reference_rejected_token_logps"),
    "D(P)": ("detached_policy_chosen_logps", "detached_policy_rejected_logps"),
    "D(Pm)": ("detached_policy_chosen_mean_logps", "detached_policy_rejected_mean_logps"),
    "n": ("chosen_lengths", "rejected_lengths"),
    "present": ("chosen_present", "rejected_present"),
    "changed": ("chosen_changed_mask", "rejected_changed_mask"),
}


@dataclass(frozen=True)
class Estimator:
    """An estimator as a yaml names it: the function in objectives/statistics.py and its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Function:
    """A loss that is one function.

    Args:
        asks: its positional parameters in order, in the words above.
        settings: its keyword-only parameters with the values of the yaml.
        statistics: by parameter the estimator, or the number, that fills it.
        groups: what the yaml chooses besides, `corruption` or `reference`.
        name: the function's, where it is not the yaml's.
    """

    asks: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    statistics: Mapping[str, Estimator | float] = field(default_factory=dict[str, Estimator | float])
    groups: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Its positional parameters in order."""
        return tuple(name for word in self.asks.split() for name in WORDS.get(word, (word,)))


@dataclass(frozen=True)
class Sum:
    """A loss that is a weighted sum.

    Args:
        weights: by term its weight. A term has the name of its loss, or of its function in `INLINE`.
        settings: by term the values that differ from its own yaml; for an inline term all of them.
        shared: settings of the sum that all terms with such a setting follow.
        groups: as for a function.
    """

    weights: Mapping[str, float]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    shared: Mapping[str, Any] = field(default_factory=dict[str, Any])
    groups: Mapping[str, str] = field(default_factory=dict[str, str])


def names(*words: str) -> str:
    return " ".join(words)


BETA = {"beta": 0.1}
FUNCTIONS: Mapping[str, Function] = {
    # supervised
    "sft": Function("policy_chosen_mean_logps"),
    "sft_sum": Function("policy_chosen_logps"),
    "sft_token_mean": Function("policy_chosen_logps mean_chosen_length", {}, {"mean_chosen_length": Estimator("mean_chosen_length")}),
    # the difference of the log-ratios
    "dpo": Function("P R", BETA),
    "tr_dpo": Function("P R", {"beta": 0.05}, groups={"reference": "moving"}, name="dpo"),
    "ipo_sum": Function("P R", BETA),
    "hinge": Function("P R", {"beta": 0.05}),
    "cdpo": Function("P R", {"beta": 0.1, "flip_rate": 0.1}),
    "robust_dpo": Function("P R", {"beta": 0.1, "flip_rate": 0.1}),
    "dpo_norm": Function("Pm Rm", {"beta": 5.0}),
    "ipo": Function("Pm Rm", BETA),
    "dpop": Function("P R", {"beta": 0.3, "penalty": 50.0}),
    "exo": Function("P R", {"beta": 0.1, "flip_rate": 0.001}),
    "exo_released": Function("P R", {"beta": 0.5, "rejected_log_label": -10.0}),
    "discopop": Function("P R", {"beta": 0.05, "temperature": 0.05, "max_exponent": 80.0}),
    "f_dpo_js": Function("P R", BETA),
    "f_dpo_forward_kl": Function("P R", {"beta": 0.1, "max_exponent": 80.0}),
    "f_dpo_alpha": Function("P R", {"beta": 0.1, "order": 0.5, "max_exponent": 80.0}),
    # each log-ratio by itself
    "apo_zero": Function("P R", BETA),
    "apo_down": Function("P R", BETA),
    "nca": Function("P R", {"beta": 0.01}),
    "sppo_hard": Function("P R", {"beta": 0.001}),
    "cal_dpo": Function("P R", {"beta": 0.001, "calibration_weight": 1.0}),
    # length and place of tokens
    "r_dpo": Function("P R n", {"beta": 0.1, "length_penalty": 0.01}),
    "ld_dpo": Function("Pt Rt n", {"beta": 0.1, "tail_weight": 0.5}),
    "ld_dpo_policy_only": Function("Pt R n", {"beta": 0.1, "tail_weight": 0.5}),
    "d2po": Function("Pt Rt", {"beta": 0.1, "decay": 0.98, "first_exponent": 0}),
    # without reference
    "simpo": Function("Pm", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
    # statistics of the batch
    "wpo": Function(
        names("P R D(Pm)", "detached_policy_chosen_mean_collision_logps", "detached_policy_rejected_mean_collision_logps"),
        {"beta": 0.01, "max_weight": 1.0},
    ),
    "kto": Function(
        "P R present unmatched_kl",
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"unmatched_kl": Estimator("unmatched_kl")},
    ),
    "kto_pair": Function("P R pair_kl", BETA, {"pair_kl": Estimator("pair_kl")}),
    "bco": Function("P R present mean_logratio", {"beta": 0.01}, {"mean_logratio": Estimator("mean_logratio")}),
    "bco_pair": Function("P R mean_logratio", {"beta": 0.01}, {"mean_logratio": Estimator("mean_logratio")}),
    "aot": Function("P R sorted_reference_gap", {"beta": 0.01}, {"sorted_reference_gap": Estimator("sorted_reference_gap")}),
    "aot_unpaired": Function("P D(P) R sorted_partners", {"beta": 0.01}, {"sorted_partners": Estimator("sorted_partners")}),
    "beta_dpo": Function(
        "P R gap",
        {"beta": 0.1, "beta_slope": 0.6},
        {"gap": Estimator("filtered_gap_moments", {"decay": 0.9, "drop_fraction": 0.2})},
    ),
    "alpha_dpo": Function(
        "Pm D(Pm) Rm gap",
        {"beta": 2.5, "gamma_beta_ratio": 0.6, "margin_scale": 0.2},
        {"gap": Estimator("mean_gap_moments", {"decay": 0.9})},
    ),
    # the divergence from the reference, and changed tokens
    "tdpo1": Function("P R policy_chosen_forward_kl policy_rejected_forward_kl", BETA),
    "tdpo2": Function("P R detached_policy_chosen_forward_kl policy_rejected_forward_kl", {"beta": 0.1, "kl_weight": 0.5}),
    "ddpo": Function("Pt Rt changed n", {"beta": 0.1, "segment_weight": 5.0}),
    "ddpo_sum": Function("Pt Rt changed", {"beta": 0.1, "segment_weight": 5.0}),
    "chip_released": Function(
        names(
            "Pt policy_chosen_corrupt_token_logps Rt reference_chosen_corrupt_token_logps",
            "detached_policy_chosen_forward_kl policy_rejected_forward_kl changed",
        ),
        {"beta": 0.1, "segment_weight": 4.0, "token_weight": 0.1},
        groups={"corruption": "diffusion_noise"},
    ),
    # corrupted images
    "copo": Function(
        names("policy_chosen_logps policy_chosen_corrupt_logps", "reference_chosen_logps reference_chosen_corrupt_logps"), BETA
    ),
    "anchor": Function("policy_chosen_logps reference_chosen_logps", {"beta": 0.1, "margin": 0.0}),
    "mmedpo": Function(
        names(
            "policy_chosen_logps policy_rejected_corrupt_logps reference_chosen_logps reference_rejected_corrupt_logps",
            "pair_weight weight_scale",
        ),
        BETA,
        {"weight_scale": 1.0},
        {"corruption": "roi_noise"},
    ),
    "mmedpo_released": Function(
        names(
            "policy_chosen_logps policy_rejected_corrupt_logps reference_chosen_logps reference_rejected_corrupt_logps",
            "pair_weight weight_scale",
        ),
        BETA,
        {"weight_scale": 1.0},
        {"corruption": "roi_noise_released"},
        name="mmedpo",
    ),
    "v_dpo": Function(
        "P detached_policy_chosen_corrupt_logps detached_policy_rejected_corrupt_logps R",
        {"beta": 0.1, "guidance": 2.0},
        groups={"corruption": "blank"},
    ),
    "perception": Function("policy_chosen_token_image_kl chosen_lengths", {"max_kl": 0.2}),
    "perception_k3": Function("policy_chosen_token_logps detached_policy_chosen_corrupt_token_logps chosen_lengths", {"max_kl": 10.0}),
}

# Terms of sums that have no yaml of their own; their settings stand in the sum.
INLINE: Mapping[str, Function] = {
    "policy_hinge": Function("P"),
    "uniform_dpo": Function("P"),
    "odds_ratio": Function("Pm"),
    "kl_margin": Function("detached_policy_chosen_forward_kl policy_rejected_forward_kl"),
    "hallucination_dpo": Function(
        names(
            "policy_chosen_logps policy_chosen_hallucinated_logps",
            "reference_chosen_logps reference_chosen_hallucinated_logps",
        )
    ),
    "top_wrong_dpo": Function(
        names("policy_chosen_logps policy_rejected_top_wrong_logps", "reference_chosen_logps reference_rejected_top_wrong_logps")
    ),
    "top_wrong_copo": Function(
        names(
            "policy_chosen_logps policy_chosen_corrupt_top_wrong_logps",
            "reference_chosen_logps reference_chosen_corrupt_top_wrong_logps",
        )
    ),
}

SUMS: Mapping[str, Sum] = {
    "slic": Sum({"policy_hinge": 1.0, "sft_sum": 0.1}, {"policy_hinge": {"margin": 1.0}}, shared={"margin": 1.0}),
    "cpo": Sum({"uniform_dpo": 1.0, "sft_token_mean": 1.0}, {"uniform_dpo": BETA}, shared=BETA),
    "cpo_simpo": Sum({"simpo": 1.0, "sft_token_mean": 0.05}, shared={"beta": 10.0, "gamma_beta_ratio": 0.54}),
    "orpo": Sum({"sft": 1.0, "odds_ratio": 0.1}),
    "dpo_nll": Sum({"dpo": 1.0, "sft": 1.0}, shared=BETA),
    "rpo": Sum({"dpo": 1.0, "sft": 0.005}, shared={"beta": 0.01}),
    "mpo": Sum({"dpo": 0.8, "bco_pair": 0.2, "sft_token_mean": 1.0}, shared=BETA),
    "mdpo": Sum({"dpo": 1.0, "copo": 1.0, "anchor": 1.0}, shared=BETA, groups={"corruption": "crop"}),
    "mdpo_released": Sum({"dpo": 2.0, "anchor": 1.0}, shared=BETA),
    "chip": Sum(
        {"dpo": 1.0, "ddpo_sum": 1.0, "kl_margin": 0.1, "copo": 1.0},
        {"kl_margin": BETA},
        shared=BETA,
        groups={"corruption": "diffusion_noise"},
    ),
    "povid": Sum(
        {"hallucination_dpo": 0.5, "dpo": 0.5}, {"hallucination_dpo": BETA}, shared=BETA, groups={"corruption": "diffusion_noise"}
    ),
    "opa_dpo": Sum({"dpo": 1.0, "copo": 0.2, "anchor": 1.0}, shared=BETA, groups={"corruption": "pixel_mask"}),
    "re_align_rdpo": Sum({"dpo": 1.0, "copo": 1.0}, shared=BETA, groups={"corruption": "file"}),
    "re_align_rdpo_released": Sum(
        {"top_wrong_dpo": 1.0, "top_wrong_copo": 1.0},
        {"top_wrong_dpo": BETA, "top_wrong_copo": BETA},
        shared=BETA,
        groups={"corruption": "file"},
    ),
}

# What the estimators ask for, in any order, and the state they keep (`previous` asks for it).
ESTIMATORS: Mapping[str, Function] = {
    "mean_chosen_length": Function("chosen_lengths"),
    "mean_pair_weight": Function("pair_weight"),
    "unmatched_kl": Function("detached_policy_unmatched_logps reference_unmatched_logps"),
    "pair_kl": Function("D(P) R"),
    "mean_logratio": Function("D(P) R present previous"),
    "mean_gap_moments": Function("D(Pm) Rm previous", {"decay": None}),
    "filtered_gap_moments": Function("D(P) R uniform_draw previous", {"decay": None, "drop_fraction": None}),
    "sorted_reference_gap": Function("D(P) R"),
    "sorted_partners": Function("D(P) R"),
}

# Defaults whose source nobody could read: the cards say so, by setting.
UNVERIFIED: Mapping[str, tuple[str, ...]] = {
    "dpo_norm": ("beta",),
    "r_dpo": ("length_penalty",),
    "dpop": ("beta", "penalty"),
    "cal_dpo": ("calibration_weight",),
    "v_dpo": ("guidance",),
    "ddpo": ("segment_weight",),
    "ddpo_sum": ("segment_weight",),
}
# Plain names whose formula is not the released code's.
DERIVED = ("chip", "opa_dpo", "re_align_rdpo", "cal_dpo", "v_dpo")
# Cards that may say `paper`: none. What is quoted of papers, at second hand by TRL's index of them, are defaults, not formulas.
PAPER: tuple[str, ...] = ()
# Cards that say `official code`, by the repository of the paper's authors that was read; every other card is `derived`. Code of others,
# such as TRL, HALOs (but for its authors' own KTO) or LLaMA-Factory, and of DPO's authors for losses of other papers, does not count.
OFFICIAL: Mapping[str, str] = {
    "alpha_dpo": "junkangwu/alpha-DPO",
    "anchor": "luka-group/mDPO",
    "beta_dpo": "junkangwu/beta-DPO",
    "cdpo": "eric-mitchell/direct-preference-optimization",  # a note by DPO's first authors, which this code names
    "chip_released": "LVUGAI/CHiP",
    "copo": "luka-group/mDPO",
    "cpo": "fe1ixxu/ALMA",
    "cpo_simpo": "fe1ixxu/CPO_SIMPO",
    "d2po": "LotuSrc/D2PO",
    "ddpo": "RLHF-V/RLAIF-V",  # the later repository of RLHF-V's authors
    "ddpo_sum": "RLHF-V/RLAIF-V",
    "discopop": "luchris429/DiscoPOP",
    "dpo": "eric-mitchell/direct-preference-optimization",
    "exo_released": "haozheji/exact-optimization",
    "f_dpo_alpha": "alecwangcq/f-divergence-dpo",
    "f_dpo_forward_kl": "alecwangcq/f-divergence-dpo",
    "f_dpo_js": "alecwangcq/f-divergence-dpo",
    "kto": "ContextualAI/HALOs",
    "mdpo": "luka-group/mDPO",
    "mdpo_released": "dmis-lab/med-vlm-dpo",
    "mmedpo": "aiming-lab/MMedPO",
    "mmedpo_released": "aiming-lab/MMedPO",
    "mpo": "OpenGVLab/InternVL",
    "nca": "thu-ml/Noise-Contrastive-Alignment",
    "orpo": "xfactlab/orpo",
    "perception_k3": "SStoica12/PAPO",  # a fork by one of PAPO's authors
    "povid": "YiyangZhou/POVID",
    "re_align_rdpo_released": "taco-group/Re-Align",
    "simpo": "princeton-nlp/SimPO",
    "tdpo1": "Vance0124/Token-level-Direct-Preference-Optimization",
    "tdpo2": "Vance0124/Token-level-Direct-Preference-Optimization",
    "wpo": "wzhouad/WPO",
}
